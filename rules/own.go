package rules

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

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

// occupied reads the kernel's addresses and routes. vipLink is the link for VIPs.
func occupied(s *model.Snapshot, vipLink string) (occupancy, error) {
	o := occupancy{own: map[netip.Addr]bool{}}
	if err := o.readAddresses(vipLink); err != nil {
		return o, err
	}
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

func (o *occupancy) readAddresses(vipLink string) error {
	vips := 0
	if link, err := netlink.LinkByName(vipLink); err == nil {
		vips = link.Attrs().Index
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range list {
		if p := prefixOf(a.IPNet); a.LinkIndex != vips { // to a VIP, the edge's own routes lead before any other
			o.networks = append(o.networks, p.Masked())
			o.own[p.Addr()] = true
		}
	}
	o.networks = disjoint(o.networks)
	return nil
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
func (o *occupancy) podCIDR(p netip.Prefix) string {
	if p.Bits() < minPodCIDRBits {
		return fmt.Sprintf("it is wider than a /%d", minPodCIDRBits)
	}
	if slices.ContainsFunc(noPods[:], p.Overlaps) {
		return "pods cannot have such addresses"
	}
	if _, network := overlapping(o.networks, p); network.IsValid() {
		return fmt.Sprintf("it overlaps %v, a network of the edge itself: if that is meant, make the route by hand", network)
	}
	for _, taken := range [][]netip.Addr{o.gateways, o.nodes} {
		if i, _ := slices.BinarySearchFunc(taken, p.Addr(), netip.Addr.Compare); i < len(taken) && p.Contains(taken[i]) {
			return fmt.Sprintf("it takes in %v, which is no pod but a node, an API server or a gateway", taken[i])
		}
	}
	return ""
}

// withoutTakeovers returns the snapshot without the VIPs, InternalIPs and podCIDRs that belong to someone else, and logs
// them.
func (k *Kernel) withoutTakeovers(ctx context.Context, s *model.Snapshot) (*model.Snapshot, error) {
	o, err := occupied(s, k.o.Link)
	if err != nil {
		return nil, err
	}
	out := *s
	out.Services = slices.Clone(s.Services)
	for i := range out.Services {
		vips := &out.Services[i].VIPs
		*vips = without(*vips, func(a netip.Addr) bool { return k.refused(ctx, "VIP", a, o.vip(a)) })
	}
	out.Nodes = slices.Clone(s.Nodes)
	var routed []netip.Prefix // ordered and disjoint
	for i := range out.Nodes {
		n := &out.Nodes[i]
		n.InternalIPs = without(n.InternalIPs, func(a netip.Addr) bool { return k.refused(ctx, "InternalIP", a, o.internalIP(a)) })
		var own []netip.Prefix
		for _, p := range n.PodCIDRs {
			why := o.podCIDR(p)
			at, other := overlapping(routed, p)
			if why == "" && other.IsValid() {
				why = fmt.Sprintf("it overlaps %v, the podCIDR of another node", other)
			}
			if p.Addr().Is4() && !k.refused(ctx, "podCIDR", p, why) {
				routed = slices.Insert(routed, at, p)
				own = append(own, p)
			}
		}
		n.PodCIDRs = own
	}
	return &out, nil
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

// without leaves out what is refused; the list itself is not changed.
func without[T any](list []T, refused func(T) bool) []T {
	if !slices.ContainsFunc(list, refused) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), refused)
}

// refused says whether there is a reason to leave something out, and logs a new one.
func (k *Kernel) refused(ctx context.Context, what string, which fmt.Stringer, why string) bool {
	if why != "" && k.isNews(what+" "+which.String(), why) {
		k.log.WarnContext(ctx, "left out: it belongs to someone else", "what", what, "which", which, "why", why)
	}
	return why != ""
}
