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

// minPodCIDRBits is the widest podCIDR that gets a route. No node has more pods; a wider one would take in what is
// reached by the default route.
const minPodCIDRBits = 8

// noPods are networks that pods cannot have: unspecified, loopback, link-local, multicast and reserved (RFC 6890).
var noPods = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
}

// An occupancy is what the edge's own network and the cluster's nodes have for themselves. Services and Nodes are
// written by many, some of them less trusted than who configured the edge: neither may take these from their owners.
type occupancy struct {
	own      map[netip.Addr]bool // addresses of the edge, VIPs aside
	networks []netip.Prefix      // that the edge has an address of, VIPs aside: ordered and disjoint
	gateways []netip.Addr        // of routes that others made, ordered
	nodes    []netip.Addr        // the nodes' InternalIPs and the API servers' addresses, ordered
}

// occupied reads the kernel's routes.
func (k *Kernel) occupied(s *model.Snapshot, here addresses) (occupancy, error) {
	o := occupancy{own: map[netip.Addr]bool{}, nodes: slices.Clone(k.o.APIServers)}
	for _, p := range here.others { // not VIPs: to those, the edge's own routes lead before any other
		o.networks = append(o.networks, p.Masked())
		o.own[p.Addr()] = true
	}
	o.networks = plan.Disjoint(o.networks)
	routes, err := mainRoutes()
	if err != nil {
		return o, err
	}
	for _, r := range routes {
		if r.Protocol == routeProtocol {
			continue
		}
		o.addGateway(r.Gw)
		for _, hop := range r.MultiPath {
			o.addGateway(hop.Gw)
		}
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
	return o, nil
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

// vip says why an address cannot be a VIP, or is empty. As one, the edge's own address would be guarded, which could lock
// the operator out, and for that of another machine the edge would answer in its place.
func (o *occupancy) vip(a netip.Addr) string {
	switch {
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
func (o *occupancy) podCIDR(p netip.Prefix) (model.Reason, string) {
	if p.Bits() < minPodCIDRBits {
		return model.ReasonInvalidField, fmt.Sprintf("it is wider than a /%d", minPodCIDRBits)
	}
	if slices.ContainsFunc(noPods[:], p.Overlaps) {
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

// withoutTakeovers returns the snapshot without the VIPs, InternalIPs and podCIDRs that belong to someone else, which are
// Problems.
func (k *Kernel) withoutTakeovers(s *model.Snapshot, here addresses) (*model.Snapshot, error) {
	o, err := k.occupied(s, here)
	if err != nil {
		return nil, err
	}
	out := *s
	out.Services = slices.Clone(s.Services)
	for i := range out.Services {
		svc := &out.Services[i]
		svc.VIPs = without(svc.VIPs, func(a netip.Addr) bool {
			why := o.vip(a)
			return why != "" && k.problem(svc.Ref, vipField(svc), model.ReasonAddressTaken, "%v is not served: %s: choose another", a, why)
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
		n.PodCIDRs = without(n.PodCIDRs, func(p netip.Prefix) bool { return !p.Addr().Is4() || k.refusedPodCIDR(n.Ref, &o, p, &routed) })
	}
	return &out, nil
}

// refusedPodCIDR says whether there cannot be a route to a podCIDR, and otherwise adds it to those routed.
func (k *Kernel) refusedPodCIDR(node model.ObjectRef, o *occupancy, p netip.Prefix, routed *[]netip.Prefix) bool {
	reason, why := o.podCIDR(p)
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

// vipField is what a Service asks for its VIPs by.
func vipField(svc *model.Service) string {
	return cmp.Or(svc.RequestField, "status.loadBalancer.ingress")
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
