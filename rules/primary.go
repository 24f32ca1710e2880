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
func (k *Kernel) nodePortAddresses(here addresses) ([]netip.Prefix, error) {
	if len(k.o.NodePortAddresses) > 0 {
		return k.o.NodePortAddresses, nil
	}
	links, err := k.net.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links = slices.DeleteFunc(links, func(l netlink.Link) bool {
		return l.Attrs().Name == k.o.Link || l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().Flags&net.FlagLoopback != 0
	})
	var list []netip.Prefix
	for _, s := range k.stacks {
		if a := s.primary(links, here.list); a.IsValid() {
			list = append(list, single(a))
		}
	}
	return list, nil
}

// primary is the address that this machine's default route leaves by, or else the first one of the first of the links; the
// zero Addr if there is none.
func (s *stack) primary(links []netlink.Link, addrs []netlink.Addr) netip.Addr {
	link := 0
	if r := s.defaultRoute(); r != nil {
		if a, ok := netip.AddrFromSlice(r.Src); ok {
			return a.Unmap()
		}
		link = r.LinkIndex
		if len(r.MultiPath) > 0 {
			link = r.MultiPath[0].LinkIndex
		}
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
		if a := s.firstAddress(l, addrs); a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// defaultRoute is the one that the kernel prefers.
func (s *stack) defaultRoute() (best *netlink.Route) {
	for i, r := range s.main {
		if s.prefix(r.Dst) == s.all && (best == nil || r.Priority < best.Priority) {
			best = &s.main[i]
		}
	}
	return best
}

// firstAddress is the first address of a link that others can reach, and that does not change by itself.
func (s *stack) firstAddress(l netlink.Link, addrs []netlink.Addr) netip.Addr {
	const unsteady = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	for _, entry := range addrs {
		a := prefixOf(entry.IPNet).Addr()
		if entry.LinkIndex == l.Attrs().Index && s.Has(a) && a.IsGlobalUnicast() && (a.Is4() || entry.Flags&unsteady == 0) {
			return a
		}
	}
	return netip.Addr{}
}
