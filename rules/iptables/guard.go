package iptables

import (
	"net/netip"
	"slices"

	"sallyport/rules/plan"
)

// filters writes the filter table: which of the packets that the nat table saw may pass, and which are refused.
func (r *renderer) filters() {
	refuse := "-m mark --mark " + markValue(r.Owner()|verdictReject, verdictMask) + " -g SALLY-REJECT"
	invalid := r.invalid()

	forward := r.filter.chain("SALLY-FORWARD")
	forward.rule("-m mark --mark", markValue(r.Owner()|verdictMasquerade, verdictMask), "-j ACCEPT")
	forward.rule("-m connmark --mark", markValue(r.Owner(), plan.OwnerMask), "-j ACCEPT") // and all that follow, both ways
	forward.rule(refuse)

	input := r.filter.chain("SALLY-INPUT")
	input.rule(refuse)
	// What was sent on to an address of the edge itself: who can write an EndpointSlice must not reach its sshd thus.
	// Only its first packet: other programs save marks with connections, and give them to the answers.
	input.rule("-m mark --mark", markValue(r.Owner()|verdictMasquerade, verdictMask), "-m conntrack --ctstate NEW -g SALLY-REJECT")
	if invalid != "" {
		forward.rule(invalid)
		input.rule(invalid)
	}
	r.refuseOthers(forward)
	r.guard(input)

	reject := r.filter.chain("SALLY-REJECT")
	reject.rule("-p tcp -j REJECT --reject-with tcp-reset")
	reject.rule("-j REJECT --reject-with icmp-port-unreachable")
}

// guard protects what listens on all addresses of the edge, such as its sshd, from being reached at a VIP. It holds
// for each VIP by its address, not by a mark: it must also hold for packets that never saw the nat table.
func (r *renderer) guard(input *chain) {
	var addrs []netip.Addr
	for _, v := range r.Addresses {
		if v.Own {
			addrs = append(addrs, v.Addr)
		}
	}
	if len(addrs) == 0 {
		return
	}
	items := prefixItems(merge(addrs), func(c *chain, p netip.Prefix) { c.rule("-d", p.String(), "-g SALLY-GUARD") })
	input.rule("-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")
	tree{b: r.filter, name: "SALLY-VIP", by: byDestination}.enter(input, items)

	c := r.filter.chain("SALLY-GUARD")
	// Answering a packet that conntrack cannot place by a reset would end the connection that it belongs to.
	c.rule("-m conntrack --ctstate INVALID -j DROP")
	c.rule("-p icmp -j ACCEPT")
	for _, port := range slices.Sorted(slices.Values(r.VIPPorts)) {
		c.rule(portMatch("tcp", port, port), "-j ACCEPT")
	}
	c.rule("-g SALLY-REJECT")
}

// invalid writes the chain for packets from endpoints that conntrack cannot place, such as late retransmissions. They
// would not be translated back, and whoever gets them (the edge itself, or the client) would answer by a reset that ends
// the connection (kubernetes/kubernetes#74839). It returns the rule that leads there, if there is one.
func (r *renderer) invalid() string {
	if len(r.Answers) == 0 {
		return ""
	}
	items := make([]item, len(r.Answers))
	for i, a := range r.Answers {
		items[i] = item{key: addrKey(a.Prefix.Addr()), bits: a.Prefix.Bits(), rules: 1, write: func(c *chain) {
			ports := ""
			if a.LastPort != 0 {
				ports = "-p tcp -m tcp --sport " + portRange(a.FirstPort, a.LastPort)
			}
			c.rule("-s", a.Prefix.String(), ports, "-j DROP")
		}}
	}
	tree{b: r.filter, name: "SALLY-INV", by: bySource}.build(items)
	return "-m conntrack --ctstate INVALID -j SALLY-INV"
}

func prefixItems(prefixes []netip.Prefix, write func(*chain, netip.Prefix)) []item {
	items := make([]item, len(prefixes))
	for i, p := range prefixes {
		items[i] = item{key: addrKey(p.Addr()), bits: p.Bits(), rules: 1, write: func(c *chain) { write(c, p) }}
	}
	return items
}
