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

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// The kernel answers for a VIP by a local route to it, which does all that an address on a link does for us. Addresses take the
// kernel quadratic time (10,000 some seconds, in IPv6 minutes), routes do not.

// answered are the addresses that this edge answers for beside its own, ordered.
func answered(plans []*plan.Plan) (list []netip.Addr) {
	for _, p := range plans {
		for _, a := range p.Addresses {
			if a.Own {
				list = append(list, a.Addr)
			}
		}
		list = append(list, p.Held...)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// withdraw has the kernel answer no longer for what is not among the VIPs, which are ordered.
func (k *Kernel) withdraw(ctx context.Context, here addresses, vips []netip.Addr) error {
	wanted := func(a netip.Addr) bool { return has(vips, a) }
	gone := without(here.vips, wanted)
	refused, err := k.net.remove(localRoutes(gone, nil))
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(refused, func(err error) bool { return err != nil }); i >= 0 {
		return fmt.Errorf("withdraw %v: %w", gone[i], refused[i])
	}
	k.logVIPs(ctx, gone, "withdrawn")
	stay := without(here.vips, func(a netip.Addr) bool { return !wanted(a) })
	return k.net.removeAddresses(here.link, without(here.onLink, wanted), stay)
}

// assign has the kernel answer for the VIPs. The link for them is made for the first one. One that the kernel does not take is a
// Problem, and keeps no other from being served.
func (k *Kernel) assign(ctx context.Context, here addresses, vips []netip.Addr, s *model.Snapshot) error {
	if len(vips) == 0 {
		return nil
	}
	link, err := k.net.makeLink(k.o.Link, here.link)
	if err != nil {
		return err
	}
	missing := without(vips, func(a netip.Addr) bool { return has(here.vips, a) })
	answers, err := k.net.add(localRoutes(missing, link), 0)
	if err != nil {
		return err
	}
	refused := map[netip.Addr]error{}
	for i, err := range answers {
		if err != nil && !errors.Is(err, unix.EEXIST) {
			refused[missing[i]] = err
		}
	}
	isRefused := func(a netip.Addr) bool { return refused[a] != nil }
	k.logVIPs(ctx, without(missing, isRefused), "added")
	replaced := without(here.onLink, func(a netip.Addr) bool { return isRefused(a) || !has(vips, a) })
	return errors.Join(k.refuseVIPs(s, refused), k.net.removeAddresses(link, replaced, without(vips, isRefused)))
}

// logVIPs says what was done to them, by name if they are few.
func (k *Kernel) logVIPs(ctx context.Context, list []netip.Addr, now string) {
	const named = 20
	switch {
	case len(list) == 0:
	case len(list) <= named:
		k.log.InfoContext(ctx, "VIPs changed", "now", now, "count", len(list), "vips", list)
	default:
		k.log.InfoContext(ctx, "VIPs changed", "now", now, "count", len(list))
	}
}

// refuseVIPs tells each Service that has one of those refused, and gives an error if there are any.
func (k *Kernel) refuseVIPs(s *model.Snapshot, refused map[netip.Addr]error) error {
	if len(refused) == 0 {
		return nil
	}
	for i := range s.Services {
		svc := &s.Services[i]
		for _, l := range edgeAddresses(svc) {
			for _, vip := range *l.addrs {
				if err := refused[vip]; err != nil {
					k.problem(svc.Ref, l.field, model.ReasonInvalidField, "%v is not served: the kernel refuses it as an address of this edge (%v): choose another", vip, err)
				}
			}
		}
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(refused)), netip.Addr.Compare)
	return fmt.Errorf("add %v to link %s, and %d more: %w", first, k.o.Link, len(refused)-1, refused[first])
}

func localRoutes(vips []netip.Addr, link netlink.Link) []ownRoute {
	list := make([]ownRoute, len(vips))
	for i, a := range vips {
		list[i].to = single(a)
		if link != nil {
			list[i].link = link.Attrs().Index
		}
	}
	return list
}

// removeAddresses removes from the link for VIPs what earlier versions or others have put there. With the last address of IPv4 on a
// link, the kernel removes all routes by it, so those to VIPs are made once more.
func (n *network) removeAddresses(link netlink.Link, list, vips []netip.Addr) error {
	if len(list) == 0 {
		return nil
	}
	for _, a := range list {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		if err := n.AddrDel(link, addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove %s from link %s: %w", a, link.Attrs().Name, err)
		}
	}
	_, err := n.add(localRoutes(vips, link), 0)
	return err
}

// has says whether a is among the addresses, which are ordered.
func has(addrs []netip.Addr, a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(addrs, a, netip.Addr.Compare)
	return found
}
