package rules

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nodePortAddresses are the configured ones, or else the primary address of each family.
func (k *Kernel) nodePortAddresses() ([]netip.Prefix, error) {
	if len(k.o.NodePortAddresses) > 0 {
		return k.o.NodePortAddresses, nil
	}
	var list []netip.Prefix
	for _, s := range k.stacks {
		a, err := s.primary(k.o.Link)
		if err != nil {
			return nil, err
		}
		if a.IsValid() {
			list = append(list, single(a))
		}
	}
	return list, nil
}

// primary is the address that this machine's default route leaves by, or else the first one of the first link that is up,
// loopback and the link for VIPs aside; the zero Addr if there is none.
func (s *stack) primary(vips string) (netip.Addr, error) {
	routes, err := s.mainRoutes()
	if err != nil {
		return netip.Addr{}, err
	}
	link := 0
	if r := s.defaultRoute(routes); r != nil {
		if a, ok := netip.AddrFromSlice(r.Src); ok {
			return a.Unmap(), nil
		}
		link = r.LinkIndex
		if len(r.MultiPath) > 0 {
			link = r.MultiPath[0].LinkIndex
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list links: %w", err)
	}
	slices.SortStableFunc(links, func(a, b netlink.Link) int { // that of the default route first
		switch link {
		case a.Attrs().Index:
			return -1
		case b.Attrs().Index:
			return 1
		default:
			return 0
		}
	})
	for _, l := range links {
		if name := l.Attrs().Name; name == vips || l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if a, err := s.firstAddress(l); err != nil || a.IsValid() {
			return a, err
		}
	}
	return netip.Addr{}, nil
}

// defaultRoute is the one that the kernel prefers.
func (s *stack) defaultRoute(routes []netlink.Route) (best *netlink.Route) {
	for i, r := range routes {
		if s.prefix(r.Dst) == s.all && (best == nil || r.Priority < best.Priority) {
			best = &routes[i]
		}
	}
	return best
}

// firstAddress is the first address of a link that others can reach, and that does not change by itself.
func (s *stack) firstAddress(l netlink.Link) (netip.Addr, error) {
	const unsteady = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	list, err := netlink.AddrList(l, s.number)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of link %s: %w", l.Attrs().Name, err)
	}
	for _, entry := range list {
		if a := prefixOf(entry.IPNet).Addr(); a.IsGlobalUnicast() && (s.number == netlink.FAMILY_V4 || entry.Flags&unsteady == 0) {
			return a, nil
		}
	}
	return netip.Addr{}, nil
}
