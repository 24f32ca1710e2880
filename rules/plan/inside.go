package plan

import (
	"net/netip"
	"slices"

	"sallyport/watcher/model"
)

// inside are the networks of nodes and pods, as far as Nodes tell.
func inside(s *model.Snapshot, f Family) []netip.Prefix {
	var list []netip.Prefix
	for _, n := range s.Nodes {
		list = append(list, ofFamily(f, n.PodCIDRs)...)
		for _, a := range n.InternalIPs {
			if f.Has(a) {
				list = append(list, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return Disjoint(list)
}

// answers are the podCIDRs, and in reach nodes the NodePorts of nodes.
func answers(s *model.Snapshot, f Family) []Source {
	first, last := nodePorts(s, f)
	var list []Source
	for _, p := range inside(s, f) {
		switch {
		case !p.IsSingleIP():
			list = append(list, Source{Prefix: p})
		case last != 0:
			list = append(list, Source{p, first, last})
		}
	}
	return list
}

// nodePorts is the range of NodePorts that TCP connections are sent to on nodes; 0, 0 if there are none.
func nodePorts(s *model.Snapshot, f Family) (first, last uint16) {
	var ports []uint16
	for _, svc := range s.Services {
		for _, sp := range svc.Ports {
			for _, d := range sp.Destinations {
				if d.Reach == model.ReachNodes && sp.Protocol == model.TCP && f.Has(d.Addr.Addr()) {
					ports = append(ports, d.Addr.Port())
				}
			}
		}
	}
	if len(ports) == 0 {
		return 0, 0
	}
	return slices.Min(ports), slices.Max(ports)
}
