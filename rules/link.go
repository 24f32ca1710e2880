package rules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkAlias marks the link for VIPs as made by us: we remove no other, and all addresses on it are ours.
const linkAlias = "sallyport: VIPs"

// findLink returns the link for VIPs, or nil if there is none. A link of that name which is not ours is an error.
//
// Making the link and naming it are two steps. One of our kinds that is down and bare was left between them.
func findLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); absent {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	addrs, err := linkAddrs(link)
	if err != nil {
		return nil, err
	}
	kind := link.Type()
	unfinished := (kind == "dummy" || kind == "bridge") && len(addrs) == 0 && link.Attrs().Flags&net.FlagUp == 0
	if link.Attrs().Alias != linkAlias && !unfinished {
		return nil, fmt.Errorf("link %s is not Sallyport's (its alias is not %q): rename it, or remove it by ip link del %s",
			name, linkAlias, name)
	}
	return link, nil
}

// makeLink makes the link for VIPs where it is missing: a dummy, or a bridge without ports where the kernel has none.
//
// VIPs need ARP replies on the uplinks, which the kernel gives for addresses on any link as long as arp_ignore is 0.
// So arp_ignore is left alone: setting it is for when ARP is answered from user space, by the VIP's owner alone.
func makeLink(name string) (netlink.Link, error) {
	link, err := findLink(name)
	if err != nil {
		return nil, err
	}
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err = netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
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
func (k *Kernel) withdraw(ctx context.Context, vips []netip.Addr) error {
	link, err := findLink(k.o.Link)
	if err != nil || link == nil {
		return err
	}
	addrs, err := linkAddrs(link)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if has(vips, a) {
			continue
		}
		if err := netlink.AddrDel(link, hostAddr(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove %s from link %s: %w", a, k.o.Link, err)
		}
		k.log.InfoContext(ctx, "VIP withdrawn", "vip", a)
	}
	return nil
}

// assign puts the VIPs on the link, which is made for the first one.
func (k *Kernel) assign(ctx context.Context, vips []netip.Addr) error {
	if len(vips) == 0 {
		return nil
	}
	link, err := makeLink(k.o.Link)
	if err != nil {
		return err
	}
	addrs, err := linkAddrs(link)
	if err != nil {
		return err
	}
	for _, a := range vips {
		if has(addrs, a) {
			continue
		}
		if err := netlink.AddrAdd(link, hostAddr(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add %s to link %s: %w", a, k.o.Link, err)
		}
		k.log.InfoContext(ctx, "VIP added", "vip", a)
	}
	return nil
}

func hostAddr(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
}

// has says whether a is among the addresses, which are ordered.
func has(addrs []netip.Addr, a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(addrs, a, netip.Addr.Compare)
	return found
}

// linkAddrs lists the IPv4 addresses of a link, ordered.
func linkAddrs(link netlink.Link) ([]netip.Addr, error) {
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses of link %s: %w", link.Attrs().Name, err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}
