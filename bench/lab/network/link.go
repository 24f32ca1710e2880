package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setUp sets the link of that name up, in the current namespace.
func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// addAddress adds addresses to the link of that name and sets it up. IPv6 addresses are used at once: nobody else has
// them, so duplicate address detection (RFC 4862, 1 s) would only cost time.
func addAddress(name string, addresses ...netip.Prefix) error {
	if err := setUp(name); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, a := range addresses {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %v to %s: %w", a, name, err)
		}
	}
	return nil
}

// addRoute sets the route to prefix, in the current namespace, whatever it was before.
func addRoute(prefix netip.Prefix, via netip.Addr) error {
	err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(prefix), Gw: via.AsSlice()})
	if err != nil {
		return fmt.Errorf("add route %v via %v: %w", prefix, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setForwarding makes the current namespace a router, or not, in both families.
func setForwarding(on bool) error {
	value := []byte("0")
	if on {
		value = []byte("1")
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+key, value, 0o644); err != nil {
			return fmt.Errorf("set forwarding: %w", err)
		}
	}
	return nil
}
