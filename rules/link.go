package rules

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkAlias marks the link for VIPs as made by us: we remove no other, and all that is on it is ours.
const linkAlias = "sallyport: VIPs"

// addresses are those of this machine, of both families. They are read once in each Reconcile.
type addresses struct {
	link   netlink.Link   // for VIPs; nil if there is none
	vips   []netip.Addr   // that the kernel answers for by local routes of ours, ordered
	onLink []netip.Addr   // on that link, but the kernel's own, link-local one: earlier versions had VIPs there
	list   []netlink.Addr // on other links
	others []netip.Prefix // the same
}

// readAddresses fails if there is a link of the name for VIPs that is not ours.
func (n *network) readAddresses(linkName string) (a addresses, err error) {
	a.link, err = n.LinkByName(linkName)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !absent {
		return a, fmt.Errorf("find link %s: %w", linkName, err)
	}
	list, err := n.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return a, fmt.Errorf("list addresses: %w", err)
	}
	for _, entry := range list {
		p := prefixOf(entry.IPNet)
		switch {
		case a.link == nil || entry.LinkIndex != a.link.Attrs().Index:
			a.list = append(a.list, entry)
			a.others = append(a.others, p)
		case p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast():
			a.onLink = append(a.onLink, p.Addr())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		vips, err := n.vips(family)
		if err != nil {
			return a, err
		}
		a.vips = append(a.vips, vips...)
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
	unfinished := (kind == "dummy" || kind == "bridge") && len(a.onLink) == 0 && a.link.Attrs().Flags&net.FlagUp == 0
	if a.link.Attrs().Alias != linkAlias && !unfinished {
		return fmt.Errorf("link %s is not Sallyport's (its alias is not %q): rename it, or remove it by ip link del %s",
			name, linkAlias, name)
	}
	return nil
}

// makeLink makes the link for VIPs where it is missing: a dummy, or a bridge without ports where the kernel has none.
//
// VIPs need ARP replies on the uplinks, which the kernel gives for what local routes lead to, on whichever link, as long as
// arp_ignore is 0. So arp_ignore is left alone: setting it is for when ARP is answered from user space, by the VIP's owner alone.
func (n *network) makeLink(name string, link netlink.Link) (netlink.Link, error) {
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err := n.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = n.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		}
		if err != nil {
			return nil, fmt.Errorf("make link %s: %w", name, err)
		}
		if link, err = n.LinkByName(name); err != nil {
			return nil, fmt.Errorf("find new link %s: %w", name, err)
		}
	}
	if link.Attrs().Alias == linkAlias && link.Attrs().Flags&net.FlagUp != 0 {
		return link, nil
	}
	if err := n.LinkSetAlias(link, linkAlias); err != nil {
		return nil, fmt.Errorf("set alias of link %s: %w", name, err)
	}
	if err := n.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set link %s up: %w", name, err)
	}
	return link, nil
}
