package rules

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// linkAlias marks the link for VIPs as made by us: we remove no other, and all addresses on it are ours.
const linkAlias = "sallyport: VIPs"

// addresses are those of this machine, of both families. They are read once in each Reconcile: with thousands of VIPs that is
// what costs.
type addresses struct {
	link   netlink.Link   // for VIPs; nil if there is none
	vips   []netip.Addr   // on that link, ordered; the kernel's own, link-local one aside
	others []netip.Prefix // on other links
}

// readAddresses fails if there is a link of the name for VIPs that is not ours.
func readAddresses(linkName string) (a addresses, err error) {
	a.link, err = netlink.LinkByName(linkName)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !absent {
		return a, fmt.Errorf("find link %s: %w", linkName, err)
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return a, fmt.Errorf("list addresses: %w", err)
	}
	for _, entry := range list {
		p := prefixOf(entry.IPNet)
		switch {
		case a.link == nil || entry.LinkIndex != a.link.Attrs().Index:
			a.others = append(a.others, p)
		case p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast():
			a.vips = append(a.vips, p.Addr())
		}
	}
	slices.SortFunc(a.vips, netip.Addr.Compare)
	return a, a.checkLink()
}

// checkLink says whether the link is ours. Making it and naming it are two steps: one of our kinds that is down and bare was
// left between them.
func (a *addresses) checkLink() error {
	if a.link == nil {
		return nil
	}
	name, kind := a.link.Attrs().Name, a.link.Type()
	unfinished := (kind == "dummy" || kind == "bridge") && len(a.vips) == 0 && a.link.Attrs().Flags&net.FlagUp == 0
	if a.link.Attrs().Alias != linkAlias && !unfinished {
		return fmt.Errorf("link %s is not Sallyport's (its alias is not %q): rename it, or remove it by ip link del %s",
			name, linkAlias, name)
	}
	return nil
}

// makeLink makes the link for VIPs where it is missing: a dummy, or a bridge without ports where the kernel has none.
//
// VIPs need ARP replies on the uplinks, which the kernel gives for addresses on any link as long as arp_ignore is 0.
// So arp_ignore is left alone: setting it is for when ARP is answered from user space, by the VIP's owner alone.
func makeLink(name string, link netlink.Link) (netlink.Link, error) {
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		}
		if err != nil {
			return nil, fmt.Errorf("make link %s: %w", name, err)
		}
		if link, err = netlink.LinkByName(name); err != nil {
			return nil, fmt.Errorf("find new link %s: %w", name, err)
		}
	}
	if link.Attrs().Alias == linkAlias && link.Attrs().Flags&net.FlagUp != 0 {
		return link, nil
	}
	if err := netlink.LinkSetAlias(link, linkAlias); err != nil {
		return nil, fmt.Errorf("set alias of link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set link %s up: %w", name, err)
	}
	return link, nil
}

// withdraw removes the addresses on the link that are not among the VIPs, which are ordered.
func (k *Kernel) withdraw(ctx context.Context, here addresses, vips []netip.Addr) error {
	for _, a := range here.vips {
		if has(vips, a) {
			continue
		}
		if err := netlink.AddrDel(here.link, hostAddr(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove %s from link %s: %w", a, k.o.Link, err)
		}
		k.log.InfoContext(ctx, "VIP withdrawn", "vip", a)
	}
	return nil
}

// assign puts the VIPs on the link, which is made for the first one. One that the kernel does not take is a Problem, and
// keeps no other from being served.
func (k *Kernel) assign(ctx context.Context, here addresses, vips []netip.Addr, s *model.Snapshot) error {
	if len(vips) == 0 {
		return nil
	}
	link, err := makeLink(k.o.Link, here.link)
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE) // one socket for all of them
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	var errs []error
	for _, a := range vips {
		if has(here.vips, a) {
			continue
		}
		if err := h.AddrAdd(link, hostAddr(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			k.refuseVIP(s, a, err)
			errs = append(errs, fmt.Errorf("add %s to link %s: %w", a, k.o.Link, err))
			continue
		}
		k.log.InfoContext(ctx, "VIP added", "vip", a)
	}
	return errors.Join(errs...)
}

// refuseVIP tells each Service that has the VIP.
func (k *Kernel) refuseVIP(s *model.Snapshot, vip netip.Addr, err error) {
	for i := range s.Services {
		svc := &s.Services[i]
		for _, l := range edgeAddresses(svc) {
			if slices.Contains(*l.addrs, vip) {
				k.problem(svc.Ref, l.field, model.ReasonInvalidField, "%v is not served: the kernel refuses it as an address of this edge (%v): choose another", vip, err)
			}
		}
	}
}

// hostAddr is an address as it stands on the link. One of IPv6 is there at once, since no other edge that has it may keep it
// from us by duplicate address detection (RFC 4862), and as a deprecated one, which is no source of the edge's own connections.
func hostAddr(a netip.Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
		addr.ValidLft = math.MaxUint32 // for ever
	}
	return addr
}

// has says whether a is among the addresses, which are ordered.
func has(addrs []netip.Addr, a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(addrs, a, netip.Addr.Compare)
	return found
}
