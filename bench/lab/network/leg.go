package network

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// connect gives h its legs, addresses and routes.
func (n *Network) connect(h *Host) error {
	legs := n.legs(h)
	for _, leg := range legs {
		if err := n.addLeg(h, leg.network); err != nil {
			return err
		}
	}
	return h.Do(func() error {
		if err := setUp("lo"); err != nil {
			return err
		}
		if err := setForwarding(h.forwards()); err != nil {
			return err
		}
		for _, leg := range legs {
			if err := addAddress(leg.network, leg.addresses...); err != nil {
				return err
			}
		}
		return n.addRoutes(h)
	})
}

// A leg is a host's link to one of the two networks.
type leg struct {
	network   string // ClientsLink or NodesLink
	addresses []netip.Prefix
}

// legs tells where h is connected.
func (n *Network) legs(h *Host) []leg {
	in := func(network string, s subnet, v4, v6 netip.Addr) leg {
		return leg{network, []netip.Prefix{netip.PrefixFrom(v4, s.v4.Bits()), netip.PrefixFrom(v6, s.v6.Bits())}}
	}
	nodes := in(NodesLink, n.plan.nodes, h.NodesAddr, h.NodesAddr6)
	switch h.role() {
	case "node":
		return []leg{nodes}
	case "control":
		v4, v6 := n.plan.clients.host(controlOffset)
		return []leg{in(ClientsLink, n.plan.clients, v4, v6), nodes}
	case "edge":
		return []leg{in(ClientsLink, n.plan.clients, h.Addr, h.Addr6), nodes}
	default:
		return []leg{in(ClientsLink, n.plan.clients, h.Addr, h.Addr6)}
	}
}

// role is the host's name without its number.
func (h *Host) role() string {
	role, _, _ := strings.Cut(h.Name, "-")
	return role
}

// forwards tells whether h is a router of some kind. Control is not: it must not join the two networks.
func (h *Host) forwards() bool { return h.role() != "control" && h.role() != "client" }

// addLeg makes the veth pair between h and the switch.
func (n *Network) addLeg(h *Host, network string) error {
	there, err := netns.GetFromName(h.NetNS())
	if err != nil {
		return err
	}
	defer there.Close()
	return inNamespace(Prefix(n.lab)+switchName, func() error {
		bridge, err := netlink.LinkByName(network)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", network, err)
		}
		port := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: h.portName(network), MasterIndex: bridge.Attrs().Index},
			PeerName:      network,
			PeerNamespace: netlink.NsFd(int(there)),
		}
		if err := netlink.LinkAdd(port); err != nil {
			return fmt.Errorf("add link %s: %w", port.Name, err)
		}
		return setUp(port.Name)
	})
}

// addRoutes gives h, in whose namespace it runs, the routes beyond its own networks.
func (n *Network) addRoutes(h *Host) error {
	control, _ := n.plan.clients.host(controlOffset)
	router, router6 := n.plan.clients.host(routerOffset)
	api := netip.PrefixFrom(n.API, n.API.BitLen())
	switch h.role() {
	case "router":
		return addRoute(api, control)
	case "client":
		if err := addRoute(api, control); err != nil {
			return err
		}
	case "edge":
	default:
		return nil
	}
	if err := addRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), router); err != nil {
		return err
	}
	return addRoute(netip.PrefixFrom(netip.IPv6Unspecified(), 0), router6)
}
