package nftables

import (
	"fmt"
	"slices"
	"strings"

	"sallyport/rules/plan"
)

// aloneChain drops what others would forward. It also remembers: forwarding was off before it came.
const aloneChain = "alone"

// known lets others decide over packets of connections that conntrack knows.
const known = "ct state established,related return"

// base writes the chains that the kernel's hooks lead to. They stand before those that others have at the usual priorities:
// what another program translates or drops before us would otherwise decide over our connections.
func (r *renderer) base() {
	r.chain("prerouting", "type nat hook prerouting priority -110; policy accept;", "jump dispatch")
	r.chain("output", "type nat hook output priority -110; policy accept;", "jump dispatch")
	r.chain("dispatch", "",
		atAddress.key(r.words)+" vmap @"+services,
		r.ip+" daddr @"+vips+" return", // no NodePorts are served there
		r.ip+" daddr @"+held+" return",
		r.ip+" daddr @"+clusterIPs+" goto refuse", // a port that nobody has
		r.ip+" daddr "+r.unserved+" return",
		r.ip+" daddr @"+nodePortAddresses+" fib daddr type local "+atNodePort.key(r.words)+" vmap @"+nodePorts)
	r.chain("refuse", "", "meta l4proto tcp reject with tcp reset", "reject")
	r.postrouting()
	r.forward()
	r.input()
}

// ours matches connections that we sent to an endpoint.
func (r *renderer) ours() string {
	return "ct mark and " + hex(plan.OwnerMask) + " == " + hex(r.Owner())
}

// postrouting gives connections of ours their source address.
func (r *renderer) postrouting() {
	rules := []string{
		"ct mark and " + hex(plan.OwnerMask) + " != " + hex(r.Owner()) + " return",
		"meta mark and " + hex(portMask) + " vmap @" + timeouts,
		// A packet that is encapsulated afterwards must not carry our mark into its next round. Marks of others stay.
		"meta mark and " + hex(plan.OwnerMask) + " == " + hex(r.Owner()) + " meta mark set 0x0",
	}
	// The edge's own connections end with it: answers come to the edge itself, not to where the group is.
	rules = append(rules, "fib saddr type local masquerade fully-random")
	if r.KeepSource {
		rules = append(rules, r.ip+" saddr != @"+inside+" return")
	}
	rules = append(rules, "ct original "+r.ip+" daddr vmap @"+groups, "masquerade fully-random")
	r.chain("postrouting", "type nat hook postrouting priority 90; policy accept;", rules...)
}

// snat is the chain that gives connections the address of a group. It is never random: another edge, to which the group
// moves, has to arrive at the same port.
func (r *renderer) snat(group uint8) string {
	name := fmt.Sprintf("snat-%d", group)
	to := r.SNAT[group].First.String()
	if last := r.SNAT[group].Last; last != r.SNAT[group].First {
		to += "-" + last.String()
	}
	r.chain(name, "", "snat to "+to+" persistent")
	return name
}

// forward lets our connections pass, and nothing else where forwarding is on for us only. Connections that conntrack knows go
// on: they were let through before, or lead from a pod to the outside.
func (r *renderer) forward() {
	rules := append([]string{r.ours() + " accept"}, r.invalid()...)
	if r.KeepSource {
		// What a pod answers to a client on a connection that conntrack does not know belongs to one that another edge had. It is
		// known again once the client has sent something; until then, to forward it untranslated would have the client reset it.
		for _, from := range r.fromAnswers() {
			rules = append(rules, "ct state new tcp flags & (fin | syn | rst | ack) != syn "+from+" drop")
		}
	}
	if r.Router {
		rules = append(rules, known, r.ip+" daddr @"+routed+" drop")
	} else {
		rules = append(rules, known, "goto "+aloneChain)
		r.chain(aloneChain, "", "drop")
	}
	r.chain("forward", "type filter hook forward priority -10; policy accept;", rules...)
}

// input protects what listens on all addresses of the edge, such as its sshd, from being reached at a VIP. It goes by
// address: it must also hold for packets that never saw the nat hooks.
func (r *renderer) input() {
	rules := append(r.invalid(),
		// What was sent on to an address of the edge itself: who can write an EndpointSlice must not reach its sshd thus.
		"ct state new "+r.ours()+" goto refuse",
		known,
		r.ip+" daddr @"+held+" goto held",
		r.ip+" daddr @"+vips+" goto guard")
	r.chain("input", "type filter hook input priority -10; policy accept;", rules...)
	// Answers to connections that another edge had come here when its group has moved. They are not answered: a reset would
	// end the connection, which is known again once the client has sent something.
	r.chain("held", "", "meta l4proto "+r.icmp+" accept", "drop")

	guard := []string{
		"meta l4proto " + r.icmp + " accept", // of IPv6, neighbours are found by it
		// Answering a packet that conntrack cannot place by a reset would end the connection that it belongs to.
		"ct state invalid drop",
	}
	if len(r.VIPPorts) > 0 {
		ports := strings.Trim(fmt.Sprint(slices.Sorted(slices.Values(r.VIPPorts))), "[]")
		guard = append(guard, "tcp dport { "+strings.ReplaceAll(ports, " ", ", ")+" } accept")
	}
	r.chain("guard", "", append(guard, "goto refuse")...)
}

// invalid are the rules that drop packets from endpoints that conntrack cannot place, such as late retransmissions. They would
// not be translated back, and whoever gets them (the edge itself, or the client) would answer by a reset that ends the
// connection (kubernetes/kubernetes#74839).
func (r *renderer) invalid() (rules []string) {
	protocols := ""
	if r.Family == plan.IPv6 {
		protocols = "meta l4proto != " + r.icmp + " "
	}
	for _, from := range r.fromAnswers() {
		rules = append(rules, "ct state invalid "+protocols+from+" drop")
	}
	return rules
}

// fromAnswers matches what comes from where answers of endpoints do.
func (r *renderer) fromAnswers() []string {
	return []string{r.ip + " saddr @" + answers, r.ip + " saddr . tcp sport @" + answerPorts}
}
