package network

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// A Fault is how a cable fails.
type Fault int

const (
	// NoCarrier is a cable that was pulled: the host's link loses its carrier, and the host may act on that.
	NoCarrier Fault = iota
	// Silent is a switch that has lost its tables: the link stays up, and every packet in either direction is dropped.
	Silent
)

// CutCable cuts the cable between h and one of its networks, named by the host's link: ClientsLink or NodesLink. Addresses
// and routes of the host stay. A cable that is cut already fails in the way of the last call.
func (h *Host) CutCable(link string, fault Fault) error {
	return h.onPort(link, "cut", func(port, _ netlink.Link) error {
		if fault == NoCarrier {
			return netlink.LinkSetDown(port)
		}
		if err := netlink.LinkSetNoMaster(port); err != nil {
			return err
		}
		return netlink.LinkSetUp(port)
	})
}

// MendCable undoes CutCable. A cable that is whole stays so.
func (h *Host) MendCable(link string) error {
	return h.onPort(link, "mend", func(port, bridge netlink.Link) error {
		if err := netlink.LinkSetMaster(port, bridge); err != nil {
			return err
		}
		return netlink.LinkSetUp(port)
	})
}

// onPort calls do, in the switch's namespace, with the port to which the host's link leads, and the port's bridge.
func (h *Host) onPort(link, what string, do func(port, bridge netlink.Link) error) error {
	err := inNamespace(Prefix(h.Lab)+switchName, func() error {
		bridge, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("find network %q (there are %s and %s): %w", link, ClientsLink, NodesLink, err)
		}
		port, err := netlink.LinkByName(h.portName(link))
		if err != nil {
			return fmt.Errorf("the host has no link %q: %w", link, err)
		}
		return do(port, bridge)
	})
	if err != nil {
		return fmt.Errorf("%s cable %s of host %s: %w", what, link, h.Name, err)
	}
	return nil
}

// portName is the name of the switch's end of the host's link.
func (h *Host) portName(link string) string { return h.Name + "." + link[:min(1, len(link))] }
