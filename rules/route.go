package rules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// reconcileRoutes keeps a route to the podCIDRs of each node through its InternalIP, and removes those of our own that
// are no longer wanted. A route of someone else to the same network is left alone and makes ours unnecessary.
func (k *Kernel) reconcileRoutes(ctx context.Context, st *stack, s *model.Snapshot) error {
	want := k.wantRoutes(st, s)
	k.leaveForeign(ctx, st, want)
	st.routed = slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare)
	var gone []ownRoute
	for _, r := range st.main {
		if r.Protocol != routeProtocol {
			continue
		}
		dst := st.prefix(r.Dst)
		hop, wanted := want[dst]
		if wanted {
			if r.Gw.Equal(hop.gateway.AsSlice()) {
				delete(want, dst)
			}
			continue
		}
		gone = append(gone, st.ownRoute(&r))
	}
	refused, err := k.net.remove(gone)
	if err != nil {
		return err
	}
	for i, err := range refused {
		if err != nil {
			return fmt.Errorf("remove route to %s: %w", gone[i].to, err)
		}
		k.log.InfoContext(ctx, "route to pods removed", "podCIDR", gone[i].to)
	}
	return k.addRoutes(ctx, want)
}

// leaveForeign drops from want the networks that someone else has a route to.
func (k *Kernel) leaveForeign(ctx context.Context, st *stack, want map[netip.Prefix]nextHop) {
	for _, r := range st.main {
		dst := st.prefix(r.Dst)
		if _, wanted := want[dst]; wanted && r.Protocol != routeProtocol {
			delete(want, dst)
			if k.isNews(dst.String(), "foreign") {
				k.log.WarnContext(ctx, "route to pods left to another program", "podCIDR", dst, "protocol", r.Protocol, "via", r.Gw)
			}
		}
	}
}

// A nextHop is the node that a route leads through.
type nextHop struct {
	node    model.ObjectRef
	gateway netip.Addr
}

func (k *Kernel) wantRoutes(st *stack, s *model.Snapshot) map[netip.Prefix]nextHop {
	want := map[netip.Prefix]nextHop{}
	if k.o.Reach == model.ReachNodes {
		return want
	}
	for i := range s.Nodes {
		for _, cidr := range s.Nodes[i].PodCIDRs {
			gateway, ok := s.Nodes[i].InternalIP(cidr.Addr())
			if _, taken := want[cidr.Masked()]; ok && !taken && st.Has(cidr.Addr()) {
				want[cidr.Masked()] = nextHop{s.Nodes[i].Ref, gateway}
			}
		}
	}
	return want
}

// addRoutes adds or corrects routes. A node that is not on a network of the edge cannot be a gateway: whether its pods
// are routed is then up to the network, so this is said and is no error.
func (k *Kernel) addRoutes(ctx context.Context, want map[netip.Prefix]nextHop) error {
	var errs []error
	var list []ownRoute
	for _, dst := range slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare) {
		list = append(list, ownRoute{to: dst, gateway: want[dst].gateway})
	}
	answers, err := k.net.add(list, unix.NLM_F_REPLACE)
	if err != nil {
		return err
	}
	for i, r := range list {
		dst, gateway, err := r.to, r.gateway, answers[i]
		switch {
		case err == nil:
			delete(k.said, dst.String())
			k.log.InfoContext(ctx, "route to pods added", "podCIDR", dst, "via", gateway)
		case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EHOSTUNREACH):
			if k.isNews(dst.String(), "far "+gateway.String()) {
				k.log.WarnContext(ctx, "no route to pods made: the node is on no network of this edge, so the network must route the podCIDR",
					"podCIDR", dst, "via", gateway, "err", err)
			}
		default:
			k.problem(want[dst].node, "spec.podCIDRs", model.ReasonInvalidField, "there is no route to %v: the kernel refuses one via %v (%v): see status.addresses", dst, gateway, err)
			errs = append(errs, fmt.Errorf("route to %s via %s: %w", dst, gateway, err))
		}
	}
	return errors.Join(errs...)
}

// readRoutes lists the routes of the main table.
func (s *stack) readRoutes(n *network) (err error) {
	s.main, err = n.RouteListFiltered(s.number, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, unix.ENOENT) { // there is no such table yet
		return fmt.Errorf("list %v routes: %w", s.Family, err)
	}
	return nil
}

// ownRoute is a route of the main table that we made.
func (s *stack) ownRoute(r *netlink.Route) ownRoute {
	gateway, _ := netip.AddrFromSlice(r.Gw)
	return ownRoute{to: s.prefix(r.Dst), gateway: gateway.Unmap()}
}

// prefix is a route's destination; the default route's is nil or zero.
func (s *stack) prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return s.all
	}
	return prefixOf(n)
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
