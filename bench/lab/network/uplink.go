package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// uplinkName names the root namespace's end of the uplink of the lab with that index.
func uplinkName(index int) string { return fmt.Sprintf("splab%d", index) }

// addUplink claims the lowest index that no other lab has, by making the link in the root namespace that is named
// after it, and so settles the address plan.
func (n *Network) addUplink() error {
	control, err := netns.GetFromName(Prefix(n.lab) + "control")
	if err != nil {
		return err
	}
	defer control.Close()
	for index := range maxLabs {
		link := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: uplinkName(index)},
			PeerName:      uplinkLink,
			PeerNamespace: netlink.NsFd(int(control)),
		}
		err := netlink.LinkAdd(link)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return fmt.Errorf("add link %s: %w", link.Name, err)
		}
		n.plan = newPlan(index)
		return netlink.LinkSetAlias(link, uplinkAlias(n.lab))
	}
	return fmt.Errorf("all %d lab indexes are taken; see lab list and remove old labs with lab down", maxLabs)
}

// uplinkAlias tells the owner of an uplink.
func uplinkAlias(lab string) string { return "sallyport lab " + lab }

// uplink is the name of the root namespace's link to this lab.
func (n *Network) uplink() (string, error) {
	links, err := uplinksOf(n.lab)
	if err != nil {
		return "", err
	}
	if len(links) != 1 {
		return "", fmt.Errorf("%d links of the root namespace have the alias %q, want 1", len(links), uplinkAlias(n.lab))
	}
	return links[0].Attrs().Name, nil
}

func uplinksOf(lab string) ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var own []netlink.Link
	for _, link := range all {
		if link.Attrs().Alias == uplinkAlias(lab) {
			own = append(own, link)
		}
	}
	return own, nil
}
