package plan

import (
	"net/netip"

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
	for i := range s.Services {
		for k := range s.Services[i].Ports {
			sp := &s.Services[i].Ports[k]
			if sp.Protocol != model.TCP {
				continue
			}
			for _, d := range destinations(sp, f) {
				if port := d.Addr.Port(); d.Reach == model.ReachNodes {
					if last == 0 || port < first {
						first = port
					}
					last = max(last, port)
				}
			}
		}
	}
	return first, last
}
