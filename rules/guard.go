package rules

import (
	"net/netip"
	"slices"

	"sallyport/watcher/model"
)

// filters writes the filter table: which of the packets that the nat table saw may pass, and which are refused.
func (r *renderer) filters(s *model.Snapshot) {
	refuse := "-m mark --mark " + markValue(r.o.owner()|verdictReject, verdictMask) + " -g SALLY-REJECT"
	invalid := r.invalid(s)

	forward := r.filter.chain("SALLY-FORWARD")
	forward.rule("-m mark --mark", markValue(r.o.owner()|verdictMasquerade, verdictMask), "-j ACCEPT")
	forward.rule("-m connmark --mark", markValue(r.o.owner(), ownerMask), "-j ACCEPT") // and all that follow, both ways
	forward.rule(refuse)

	input := r.filter.chain("SALLY-INPUT")
	input.rule(refuse)
	// What was sent on to an address of the edge itself: who can write an EndpointSlice must not reach its sshd thus.
	// Only its first packet: other programs save marks with connections, and give them to the answers.
	input.rule("-m mark --mark", markValue(r.o.owner()|verdictMasquerade, verdictMask), "-m conntrack --ctstate NEW -g SALLY-REJECT")
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
	if len(r.vips) == 0 {
		return
	}
	addrs := make([]netip.Addr, len(r.vips))
	for i, v := range r.vips {
		addrs[i] = v.addr
	}
	items := prefixItems(merge(addrs), func(c *chain, p netip.Prefix) { c.rule("-d", p.String(), "-g SALLY-GUARD") })
	input.rule("-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")
	tree{b: r.filter, name: "SALLY-VIP", by: byDestination}.enter(input, items)

	c := r.filter.chain("SALLY-GUARD")
	// Answering a packet that conntrack cannot place by a reset would end the connection that it belongs to.
	c.rule("-m conntrack --ctstate INVALID -j DROP")
	c.rule("-p icmp -j ACCEPT")
	for _, port := range slices.Sorted(slices.Values(r.o.VIPPorts)) {
		c.rule(portMatch("tcp", port, port), "-j ACCEPT")
	}
	c.rule("-g SALLY-REJECT")
}

// invalid writes the chain for packets from endpoints that conntrack cannot place, such as late retransmissions. They
// would not be translated back, and whoever gets them (the edge itself, or the client) would answer by a reset that ends
// the connection (kubernetes/kubernetes#74839). It returns the rule that leads there, if there is one.
//
// Endpoints are known by the nodes' podCIDRs, and in reach nodes by the nodes' addresses and NodePorts.
func (r *renderer) invalid(s *model.Snapshot) string {
	fromNode := nodePortSource(s)
	var sources []netip.Prefix
	for _, n := range s.Nodes {
		sources = append(sources, n.PodCIDRs...)
		for _, a := range n.InternalIPs {
			if fromNode != "" {
				sources = append(sources, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	sources = slices.DeleteFunc(sources, func(p netip.Prefix) bool { return !p.Addr().Is4() })
	if len(sources) == 0 {
		return ""
	}
	tree{b: r.filter, name: "SALLY-INV", by: bySource}.build(prefixItems(disjoint(sources), func(c *chain, p netip.Prefix) {
		ports := ""
		if p.IsSingleIP() {
			ports = fromNode
		}
		c.rule("-s", p.String(), ports, "-j DROP")
	}))
	return "-m conntrack --ctstate INVALID -j SALLY-INV"
}

// nodePortSource matches what comes from the NodePorts that connections are sent to; empty if none are.
func nodePortSource(s *model.Snapshot) string {
	var ports []uint16
	for _, svc := range s.Services {
		for _, sp := range svc.Ports {
			for _, d := range sp.Destinations {
				if d.Reach == model.ReachNodes && sp.Protocol == model.TCP {
					ports = append(ports, d.Addr.Port())
				}
			}
		}
	}
	if len(ports) == 0 {
		return ""
	}
	return "-p tcp -m tcp --sport " + portRange(slices.Min(ports), slices.Max(ports))
}

func prefixItems(prefixes []netip.Prefix, write func(*chain, netip.Prefix)) []item {
	items := make([]item, len(prefixes))
	for i, p := range prefixes {
		items[i] = item{key: addrKey(p.Addr()), bits: p.Bits(), rules: 1, write: func(c *chain) { write(c, p) }}
	}
	return items
}
