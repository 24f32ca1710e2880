// Package network builds a lab's machines and cables out of network namespaces.
//
//	                       clients' network                    nodes' network
//	client ────────────────┤ 10.X.0.0/23                       10.X.2.0/24 ├──────────────── node-1..M
//	router ────────────────┤ pool 10.X.1.0/24                              │  (pods behind)
//	                       ├───────────────── edge-1..N ───────────────────┤
//	                       ├───────────────── control   ───────────────────┤
//	                                             │ uplink 10.X.3.0/30
//	                                       root namespace
//
// X is 200 plus the lab's index. The two networks are bridges in a namespace of their own, so the root namespace sees
// one veth link and one route of a lab. The API server runs on control at one address for everybody: control has a leg
// in both networks and forwards nothing. Clients have no route to nodes or pods, nodes none to clients.
package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NamespaceFolder is where iproute2 keeps named network namespaces.
const NamespaceFolder = "/run/netns"

// Names of the links inside hosts, and of the bridges that they lead to.
const (
	// ClientsLink is the name of a host's link to the clients' network.
	ClientsLink = "clients"
	// NodesLink is the name of a host's link to the nodes' network.
	NodesLink = "nodes"

	uplinkLink = "uplink"
	switchName = "switch"
)

// Options say what to build.
type Options struct {
	Lab          string // the lab's name, which CheckName must accept
	Nodes, Edges int    // how many of each
	Dir          string // the hosts' folders are made in here; must lie outside /run
}

// A Network is the hosts of one lab, joined by their networks.
type Network struct {
	// Hosts are client, router, control, the edges and the nodes, in this order.
	Hosts []*Host
	// API is the address of control that the root namespace and every host reach.
	API netip.Addr
	// Pool and Pool6 lie inside the clients' network and are free for VIPs.
	Pool, Pool6 netip.Prefix

	lab  string
	plan plan
}

// Create builds the network; on error nothing of it is left.
func Create(o Options) (_ *Network, err error) {
	if err := CheckName(o.Lab); err != nil {
		return nil, err
	}
	if o.Nodes < 1 || o.Nodes > maxNodes || o.Edges < 0 || o.Edges > maxEdges {
		return nil, fmt.Errorf("%d nodes and %d edges: want 1 to %d nodes and 0 to %d edges", o.Nodes, o.Edges, maxNodes, maxEdges)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("build network of lab %s: %w", o.Lab, err), Remove(o.Lab))
		}
	}()
	n := &Network{lab: o.Lab}
	if err := n.addNamespaces(o); err != nil {
		return nil, err
	}
	if err := n.addUplink(); err != nil {
		return nil, err
	}
	n.address(o.Nodes, o.Edges)
	return n, n.cable()
}

// Host returns the host of that name, or nil.
func (n *Network) Host(name string) *Host {
	for _, h := range n.Hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// addNamespaces makes the hosts, yet without addresses, and the switch.
func (n *Network) addNamespaces(o Options) error {
	names := []string{"client", "router", "control"}
	for i := range o.Edges {
		names = append(names, fmt.Sprintf("edge-%d", i+1))
	}
	for i := range o.Nodes {
		names = append(names, fmt.Sprintf("node-%d", i+1))
	}
	for _, name := range names {
		h := &Host{Name: name, Lab: o.Lab, Folder: filepath.Join(o.Dir, "hosts", name)}
		if err := os.MkdirAll(h.Folder, 0o755); err != nil {
			return fmt.Errorf("make folder of host %s: %w", name, err)
		}
		n.Hosts = append(n.Hosts, h)
	}
	for _, name := range append(names, switchName) {
		// The first ip netns add on a machine also makes /run/netns a shared mount. Without that a namespace would
		// outlive its name in the mount namespaces of all processes that were entered before.
		out, err := exec.Command("ip", "netns", "add", Prefix(o.Lab)+name).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip netns add %s: %w: %s", Prefix(o.Lab)+name, err, out)
		}
	}
	return nil
}

// address gives every host its addresses.
func (n *Network) address(nodes, edges int) {
	for _, h := range n.Hosts {
		switch h.Name {
		case "client":
			h.Addr, h.Addr6 = n.plan.clients.host(clientOffset)
		case "router":
			h.Addr, h.Addr6 = n.plan.clients.host(routerOffset)
		case "control":
			h.Addr, h.Addr6 = n.plan.nodes.host(controlOffset)
			h.NodesAddr, h.NodesAddr6 = h.Addr, h.Addr6
			n.API = h.Addr
		}
	}
	for i := range edges {
		h := n.Host(fmt.Sprintf("edge-%d", i+1))
		h.Addr, h.Addr6 = n.plan.clients.host(edgeClientsOffset + i + 1)
		h.NodesAddr, h.NodesAddr6 = n.plan.nodes.host(edgeNodesOffset + i + 1)
	}
	for i := range nodes {
		h := n.Host(fmt.Sprintf("node-%d", i+1))
		h.Addr, h.Addr6 = n.plan.nodes.host(nodeOffset + i + 1)
		h.NodesAddr, h.NodesAddr6 = h.Addr, h.Addr6
	}
	n.Pool, n.Pool6 = n.plan.pool, n.plan.pool6
}

// cable joins the hosts to their networks and the root namespace to control.
func (n *Network) cable() error {
	if err := n.addSwitch(); err != nil {
		return err
	}
	for _, h := range n.Hosts {
		if err := n.connect(h); err != nil {
			return fmt.Errorf("connect %s: %w", h.Name, err)
		}
	}
	root, control := n.plan.uplinkHosts()
	err := n.Host("control").Do(func() error {
		return addAddress(uplinkLink, netip.PrefixFrom(control, n.plan.uplink.Bits()))
	})
	if err != nil {
		return err
	}
	uplink, err := n.uplink()
	if err != nil {
		return err
	}
	if err := addAddress(uplink, netip.PrefixFrom(root, n.plan.uplink.Bits())); err != nil {
		return err
	}
	return addRoute(netip.PrefixFrom(n.API, n.API.BitLen()), control)
}

// addSwitch makes the two networks' bridges.
func (n *Network) addSwitch() error {
	return inNamespace(Prefix(n.lab)+switchName, func() error {
		for _, name := range []string{ClientsLink, NodesLink} {
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
				return fmt.Errorf("add bridge %s: %w", name, err)
			}
			if err := setUp(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// RoutePods makes every other node, and control, send what goes to podCIDR to that node.
func (n *Network) RoutePods(node string, podCIDR netip.Prefix) error {
	target := n.Host(node)
	if target == nil {
		return fmt.Errorf("route pods %v: no host %q", podCIDR, node)
	}
	via := target.NodesAddr
	if podCIDR.Addr().Is6() {
		via = target.NodesAddr6
	}
	for _, h := range n.Hosts {
		if h == target || (h.role() != "node" && h.role() != "control") {
			continue
		}
		if err := h.Do(func() error { return addRoute(podCIDR, via) }); err != nil {
			return fmt.Errorf("on %s: %w", h.Name, err)
		}
	}
	return nil
}

// Namespaces lists the names of the lab's network namespaces that exist.
func Namespaces(lab string) ([]string, error) {
	entries, err := os.ReadDir(NamespaceFolder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var own []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), Prefix(lab)) {
			own = append(own, e.Name())
		}
	}
	return own, nil
}

// Remove removes the lab's namespaces, its pods' included, and its link in the root namespace. Processes in them must
// be gone: they would keep a namespace alive without its name. A lab that does not exist is no error.
func Remove(lab string) error {
	names, err := Namespaces(lab)
	errs := []error{err}
	links, err := uplinksOf(lab)
	errs = append(errs, err)
	for _, link := range links {
		if err := netlink.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("delete link %s: %w", link.Attrs().Name, err))
		}
	}
	for _, name := range names {
		errs = append(errs, DeleteNamespace(name))
	}
	return errors.Join(errs...)
}

// DeleteNamespace removes the name of a network namespace; the namespace goes with its last process. The name may be
// missing, and it may be a file without a namespace: whoever made or deleted it was killed between two steps.
func DeleteNamespace(name string) error {
	path := filepath.Join(NamespaceFolder, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}
