package iptables

import (
	"net/netip"
	"slices"

	"sallyport/rules/plan"
)

// filters writes the filter table: which of the packets that the nat table saw may pass, and which are refused.
func (r *renderer) filters() {
	refused := isMarked(r.Owner()|verdictReject, refusedMask) + " -g SALLY-REJECT"
	sent := isMarked(r.Owner()|verdictSent, sentMask)

	forward, output := r.filter.chain("SALLY-FORWARD"), r.filter.chain("SALLY-OUTPUT")
	r.limits(forward, output)
	forward.rule(sent, "-j ACCEPT")
	forward.rule("-m connmark --mark", markValue(r.Owner(), plan.OwnerMask), "-j ACCEPT") // and all that follow, both ways
	forward.rule(refused)

	input := r.filter.chain("SALLY-INPUT")
	input.rule(refused)
	// What was sent on to an address of the edge itself: who can write an EndpointSlice must not reach its sshd thus.
	// Only its first packet: other programs save marks with connections, and give them to the answers.
	input.rule(sent, "-m conntrack --ctstate NEW -g SALLY-REJECT")

	output.rule(refused) // from the edge itself to where it does not lead to INPUT
	r.answers(forward, input)
	r.refuseOthers(forward)
	r.guard(input)
	r.reject()
}

func (r *renderer) reject() {
	c := r.filter.chain("SALLY-REJECT")
	c.rule(isMarked(r.Owner()|verdictDrop, verdictMask), "-j DROP")
	c.rule("-p tcp -j REJECT --reject-with tcp-reset")
	c.rule("-j REJECT --reject-with", r.unreachable)
}

// guard protects what listens on all addresses of the edge, such as its sshd, from being reached at a VIP or a held
// address. It holds for each by its address, not by a mark: it must also hold for packets that never saw the nat table.
func (r *renderer) guard(input *chain) {
	var own []netip.Addr
	for _, a := range r.Addresses {
		if a.Own {
			own = append(own, a.Addr)
		}
	}
	if len(own)+len(r.Held) == 0 {
		return
	}
	input.rule("-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")
	if len(r.Held) > 0 {
		r.hold(input)
	}
	if len(own) == 0 {
		return
	}
	r.lead(input, "SALLY-VIP", own, "SALLY-GUARD")
	c := r.filter.chain("SALLY-GUARD")
	c.rule("-p", r.icmp, "-j ACCEPT") // of IPv6, neighbours are found by it
	// Answering a packet that conntrack cannot place by a reset would end the connection that it belongs to.
	c.rule("-m conntrack --ctstate INVALID -j DROP")
	for _, port := range slices.Sorted(slices.Values(r.VIPPorts)) {
		c.rule(portMatch("tcp", port, port), "-j ACCEPT")
	}
	c.rule("-g SALLY-REJECT")
}

// hold writes the guard of the addresses on the nodes' leg. Without state, what comes there belongs to a connection that
// another edge has, or had: an answer would end it. It is dropped until the client's next packet makes state here.
func (r *renderer) hold(input *chain) {
	r.lead(input, "SALLY-HELD", r.Held, "SALLY-HOLD")
	c := r.filter.chain("SALLY-HOLD")
	c.rule("-p", r.icmp, "-j ACCEPT")
	c.rule("-j DROP")
}

// lead writes the tree that leads what is sent to the addresses to a chain.
func (r *renderer) lead(input *chain, name string, addrs []netip.Addr, to string) {
	destination := r.byDestination()
	tree{b: r.filter, name: name, by: destination, write: func(c *chain, it item) {
		c.rule(destination.match([]item{it}), "-g", to)
	}}.enter(input, "-j", prefixItems(merge(addrs)))
}

// answers has packets of endpoints dropped that conntrack cannot place, such as late retransmissions. They
// would not be translated back, and whoever gets them (the edge itself, or the client) would answer by a reset that ends
// the connection (kubernetes/kubernetes#74839). Where clients are known to endpoints by their own addresses, neither may an
// answer pass whose connection this edge has not seen: conntrack would take it for the beginning of one.
func (r *renderer) answers(forward, input *chain) {
	if len(r.Answers) == 0 {
		return
	}
	invalid := "-m conntrack --ctstate INVALID -j SALLY-INV"
	if r.Family == plan.IPv6 {
		invalid = "! -p " + r.icmp + " " + invalid
	}
	forward.rule(invalid)
	if r.KeepSource {
		forward.rule("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j SALLY-INV")
	}
	input.rule(invalid)
	items := make([]item, len(r.Answers))
	for i, a := range r.Answers {
		items[i] = item{key: addrKey(a.Prefix.Addr()), bits: a.Prefix.Bits(), rules: 1, index: i}
	}
	tree{b: r.filter, name: "SALLY-INV", by: r.bySource(), write: r.dropAnswer}.build(items)
}

func (r *renderer) dropAnswer(c *chain, it item) {
	a := r.Answers[it.index]
	ports := ""
	if a.LastPort != 0 {
		ports = "-p tcp -m tcp --sport " + portRange(a.FirstPort, a.LastPort)
	}
	c.rule("-s", a.Prefix.String(), ports, "-j DROP")
}
