package rules

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// An occupancy is what the edge's own network and the cluster's nodes have for themselves. Services and Nodes are
// written by many, some of them less trusted than who configured the edge: neither may take these from their owners.
type occupancy struct {
	own      map[netip.Addr]bool // addresses of the edge, VIPs aside
	networks []netip.Prefix      // that the edge has an address of, VIPs aside: ordered and disjoint
	gateways []netip.Addr        // of routes that others made, ordered
	nodes    []netip.Addr        // the nodes' InternalIPs and the API servers' addresses, ordered
}

func (k *Kernel) occupied(s *model.Snapshot, here addresses) occupancy {
	o := occupancy{own: map[netip.Addr]bool{}, nodes: slices.Clone(k.o.APIServers)}
	for _, p := range here.others { // not VIPs: to those, the edge's own routes lead before any other
		o.networks = append(o.networks, p.Masked())
		o.own[p.Addr()] = true
	}
	o.networks = plan.Disjoint(o.networks)
	for _, st := range k.stacks {
		o.addGateways(st)
	}
	for i := range s.Nodes {
		o.nodes = append(o.nodes, s.Nodes[i].InternalIPs...)
	}
	for i := range s.Services {
		if ref := s.Services[i].Ref; ref.Namespace == "default" && ref.Name == "kubernetes" { // kept by the API servers themselves
			o.addEndpoints(&s.Services[i])
		}
	}
	slices.SortFunc(o.gateways, netip.Addr.Compare)
	slices.SortFunc(o.nodes, netip.Addr.Compare)
	return o
}

// addGateways adds those of routes that others made.
func (o *occupancy) addGateways(st *stack) {
	for _, r := range st.main {
		if r.Protocol == routeProtocol {
			continue
		}
		o.addGateway(r.Gw)
		for _, hop := range r.MultiPath {
			o.addGateway(hop.Gw)
		}
	}
}

func (o *occupancy) addGateway(ip net.IP) {
	if a, ok := netip.AddrFromSlice(ip); ok {
		o.gateways = append(o.gateways, a.Unmap())
	}
}

func (o *occupancy) addEndpoints(svc *model.Service) {
	for _, p := range svc.Ports {
		for _, e := range p.Endpoints {
			o.nodes = append(o.nodes, e.Addr.Addr())
		}
	}
}

const ownAddress = "it is an address of the edge itself"

// vip says why an address cannot be one that the edge answers for, or is empty. As one, the edge's own address would be guarded,
// which could lock the operator out, and for that of another machine the edge would answer in its place.
func (o *occupancy) vip(st *stack, a netip.Addr) string {
	switch {
	case st.isSpecial(single(a)):
		return "no machine can be reached at such addresses"
	case o.own[a]:
		return ownAddress
	case has(o.gateways, a):
		return "it is the gateway of one of the edge's routes"
	case has(o.nodes, a):
		return "it is the address of a node or an API server"
	default:
		return ""
	}
}

// internalIP says why an address cannot be that of a node, or is empty.
func (o *occupancy) internalIP(a netip.Addr) string {
	if o.own[a] {
		return ownAddress
	}
	return ""
}

// podCIDR says why there cannot be a route to a podCIDR, or is empty.
func (o *occupancy) podCIDR(st *stack, p netip.Prefix) (model.Reason, string) {
	if p.Bits() < st.widest {
		return model.ReasonInvalidField, fmt.Sprintf("it is wider than a /%d", st.widest)
	}
	if st.isSpecial(p) {
		return model.ReasonInvalidField, "pods cannot have such addresses"
	}
	if _, network := overlapping(o.networks, p); network.IsValid() {
		return model.ReasonAddressTaken, fmt.Sprintf("it overlaps %v, a network of the edge itself", network)
	}
	for _, taken := range [][]netip.Addr{o.gateways, o.nodes} {
		if i, _ := slices.BinarySearchFunc(taken, p.Addr(), netip.Addr.Compare); i < len(taken) && p.Contains(taken[i]) {
			return model.ReasonAddressTaken, fmt.Sprintf("it takes in %v, which is no pod but a node, an API server or a gateway", taken[i])
		}
	}
	return "", ""
}

// withoutTakeovers returns the snapshot without the addresses of Services, InternalIPs and podCIDRs that belong to someone else
// or are of a family that this machine does not have. Except for cluster IPs, InternalIPs and podCIDRs of such a family, they are
// Problems.
func (k *Kernel) withoutTakeovers(s *model.Snapshot, here addresses) *model.Snapshot {
	o := k.occupied(s, here)
	out := *s
	out.Services = slices.Clone(s.Services)
	for i := range out.Services {
		svc := &out.Services[i]
		for _, l := range edgeAddresses(svc) {
			*l.addrs = without(*l.addrs, func(a netip.Addr) bool { return k.refusedVIP(svc.Ref, l.field, &o, a) })
		}
		svc.ClusterIPs = without(svc.ClusterIPs, func(a netip.Addr) bool {
			return k.stack(a) != nil && k.refusedVIP(svc.Ref, "spec.clusterIPs", &o, a)
		})
	}
	out.Nodes = slices.Clone(s.Nodes)
	var routed []netip.Prefix // ordered and disjoint
	for i := range out.Nodes {
		n := &out.Nodes[i]
		n.InternalIPs = without(n.InternalIPs, func(a netip.Addr) bool {
			why := o.internalIP(a)
			return why != "" && k.problem(n.Ref, "status.addresses", model.ReasonAddressTaken,
				"%v is not used: %s, which cannot be a node of the cluster that it serves", a, why)
		})
		n.PodCIDRs = without(n.PodCIDRs, func(p netip.Prefix) bool {
			st := k.stack(p.Addr())
			return st == nil || k.refusedPodCIDR(n.Ref, st, &o, p, &routed)
		})
	}
	return &out
}

// refusedVIP says whether an address cannot be served.
func (k *Kernel) refusedVIP(svc model.ObjectRef, field string, o *occupancy, a netip.Addr) bool {
	st := k.stack(a)
	if st == nil {
		return k.problem(svc, field, model.ReasonUnsupported, "%v is not served: this edge has no IPv6 (%s)", a, k.noIPv6)
	}
	why := o.vip(st, a)
	return why != "" && k.problem(svc, field, model.ReasonAddressTaken, "%v is not served: %s: choose another", a, why)
}

// refusedPodCIDR says whether there cannot be a route to a podCIDR, and otherwise adds it to those routed.
func (k *Kernel) refusedPodCIDR(node model.ObjectRef, st *stack, o *occupancy, p netip.Prefix, routed *[]netip.Prefix) bool {
	reason, why := o.podCIDR(st, p)
	at, other := overlapping(*routed, p)
	if why == "" && other.IsValid() {
		reason, why = model.ReasonAddressTaken, fmt.Sprintf("it overlaps %v, the podCIDR of another node", other)
	}
	if why != "" {
		return k.problem(node, "spec.podCIDRs", reason, "there is no route to %v: %s: if that is meant, make the route by hand", p, why)
	}
	*routed = slices.Insert(*routed, at, p)
	return false
}

// An addressList is a list of addresses of a Service, and the field that it comes from.
type addressList struct {
	addrs *[]netip.Addr
	field string
}

// edgeAddresses are the lists of addresses that the edge answers for.
func edgeAddresses(svc *model.Service) [2]addressList {
	return [2]addressList{
		{&svc.VIPs, cmp.Or(svc.RequestField, "status.loadBalancer.ingress")},
		{&svc.ExternalIPs, "spec.externalIPs"},
	}
}

// overlapping returns the prefix in the list, which is ordered and disjoint, that p overlaps, and where p belongs.
func overlapping(list []netip.Prefix, p netip.Prefix) (at int, other netip.Prefix) {
	at, _ = slices.BinarySearchFunc(list, p, netip.Prefix.Compare)
	for _, i := range []int{at - 1, at} {
		if i >= 0 && i < len(list) && list[i].Overlaps(p) {
			return at, list[i]
		}
	}
	return at, netip.Prefix{}
}

// without leaves out what is refused; the list itself is not changed. Each is asked for once.
func without[T any](list []T, refused func(T) bool) []T {
	first := slices.IndexFunc(list, refused)
	if first < 0 {
		return list
	}
	left := slices.Clone(list[:first])
	for _, v := range list[first+1:] {
		if !refused(v) {
			left = append(left, v)
		}
	}
	return left
}
