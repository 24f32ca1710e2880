package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"sallyport/bench/lab/network"
)

const (
	bridgeName = "pods" // in the node's namespace
	podLink    = "eth0" // in the pod's namespace
)

// podNetwork joins pods to their node: a bridge in the node's namespace that holds the first address of each pod
// CIDR, and a veth pair per pod.
//
// Pods have host addresses (/32, /128) and reach everything, each other too, through the bridge's address. So the
// node routes what would else be switched, and its NAT sees both directions of a Service's connections with and without
// br_netfilter.
type podNetwork struct {
	node   netns.NsHandle
	links  *netlink.Handle // in the node's namespace
	bridge netlink.Link
	prefix string // of the names of pods' namespaces
	pools  []*addressPool
}

// sandbox is the network of one pod.
type sandbox struct {
	netNS string // name below network.NamespaceFolder
	veth  string // node's end
	ips   []netip.Addr
}

func (s sandbox) path() string { return filepath.Join(network.NamespaceFolder, s.netNS) }

// podNetNS returns the name of a pod's network namespace.
func podNetNS(prefix string, uid types.UID) string { return prefix + shortUID(uid) }

func shortUID(uid types.UID) string { return string(uid[:min(8, len(uid))]) }

// newPodNetwork makes the node's bridge, or takes the one that is there.
func newPodNetwork(nodeNetNS, prefix string, cidrs []netip.Prefix) (*podNetwork, error) {
	node, err := netns.GetFromName(nodeNetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s of the node: %w", nodeNetNS, err)
	}
	links, err := netlink.NewHandleAt(node, unix.NETLINK_ROUTE)
	if err != nil {
		node.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", nodeNetNS, err)
	}
	n := &podNetwork{node: node, links: links, prefix: prefix}
	for _, cidr := range cidrs {
		n.pools = append(n.pools, newAddressPool(cidr))
	}
	if err := n.makeBridge(); err != nil {
		n.close()
		return nil, fmt.Errorf("make bridge %s in %s: %w", bridgeName, nodeNetNS, err)
	}
	return n, nil
}

func (n *podNetwork) close() {
	n.links.Close()
	n.node.Close()
}

func (n *podNetwork) makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	attrs.HardwareAddr = randomMAC()
	err := n.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if n.bridge, err = n.links.LinkByName(bridgeName); err != nil {
		return err
	}
	for _, pool := range n.pools {
		gateway := netip.PrefixFrom(pool.gateway, pool.cidr.Bits())
		if err := n.links.AddrReplace(n.bridge, address(gateway)); err != nil {
			return fmt.Errorf("add %v: %w", gateway, err)
		}
	}
	if err := n.links.LinkSetUp(n.bridge); err != nil {
		return err
	}
	return inNetNS(n.node, refuseRedirects)
}

// randomMAC is a bridge's own address. Without one a bridge takes the lowest of its ports', and changes it as pods come and
// go, which would have lost their gateway.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac)  // never fails
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	return mac
}

// ignoreRedirects keeps a pod from bypassing its node when that says that another pod is on the same link: IPv6 has no
// switch for a router to keep silent (see refuseRedirects).
func ignoreRedirects() error {
	return os.WriteFile("/proc/sys/net/ipv6/conf/"+podLink+"/accept_redirects", []byte("0"), 0)
}

// refuseRedirects keeps the node from telling its pods to bypass it: they share its bridge, but not its NAT.
func refuseRedirects() error {
	for _, link := range []string{"all", bridgeName} {
		path := "/proc/sys/net/ipv4/conf/" + link + "/send_redirects"
		if err := os.WriteFile(path, []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// attach makes the network of a pod. What it made before an error is removed again.
func (n *podNetwork) attach(uid types.UID) (sandbox, error) {
	s := sandbox{netNS: podNetNS(n.prefix, uid), veth: "veth" + shortUID(uid)}
	err := n.allocate(&s)
	if err == nil {
		err = n.connect(s)
	}
	if err != nil {
		return sandbox{}, errors.Join(fmt.Errorf("make network of pod in %s: %w", s.netNS, err), n.detach(s))
	}
	return s, nil
}

func (n *podNetwork) allocate(s *sandbox) error {
	for _, pool := range n.pools {
		ip, err := pool.take()
		if err != nil {
			return err
		}
		s.ips = append(s.ips, ip)
	}
	return nil
}

func (n *podNetwork) connect(s sandbox) error {
	ns, err := newNamedNetNS(s.netNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = s.veth
	attrs.MasterIndex = n.bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: podLink, PeerNamespace: netlink.NsFd(ns)}
	if err := n.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("add %s: %w", s.veth, err)
	}
	// A pod may be its own Service's endpoint: with br_netfilter in the kernel its packets are sent back by the bridge.
	if err := n.links.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", s.veth, err)
	}
	if err := n.links.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set %s up: %w", s.veth, err)
	}
	return n.configure(ns, s.ips)
}

// configure sets the links, addresses and routes inside the pod's namespace.
func (n *podNetwork) configure(ns netns.NsHandle, ips []netip.Addr) error {
	links, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer links.Close()
	if err := setUp(links, "lo"); err != nil {
		return err
	}
	if err := setUp(links, podLink); err != nil {
		return err
	}
	if err := inNetNS(ns, ignoreRedirects); err != nil {
		return err
	}
	eth, err := links.LinkByName(podLink)
	if err != nil {
		return err
	}
	for i, ip := range ips {
		if err := links.AddrAdd(eth, address(netip.PrefixFrom(ip, ip.BitLen()))); err != nil {
			return fmt.Errorf("add %v: %w", ip, err)
		}
		if err := routeVia(links, eth, n.pools[i].gateway); err != nil {
			return err
		}
	}
	return nil
}

// routeVia makes gateway, and everything through it, reachable by link.
func routeVia(links *netlink.Handle, link netlink.Link, gateway netip.Addr) error {
	index := link.Attrs().Index
	onLink := netlink.Route{LinkIndex: index, Dst: ipNet(netip.PrefixFrom(gateway, gateway.BitLen())), Scope: netlink.SCOPE_LINK}
	through := netlink.Route{LinkIndex: index, Gw: gateway.AsSlice()}
	for _, r := range []*netlink.Route{&onLink, &through} {
		if err := links.RouteAdd(r); err != nil {
			return fmt.Errorf("add route by %v: %w", gateway, err)
		}
	}
	return nil
}

// detach removes a pod's network and frees its addresses. What is not there is not missed.
func (n *podNetwork) detach(s sandbox) error {
	// The namespace, and the pair with it, would go by itself, but only after the last process and socket in it.
	err := errors.Join(n.deleteLink(s.veth), network.DeleteNamespace(s.netNS))
	for i, ip := range s.ips {
		n.pools[i].release(ip)
	}
	return err
}

func (n *podNetwork) deleteLink(name string) error {
	link, err := n.links.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := n.links.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

func setUp(links *netlink.Handle, name string) error {
	link, err := links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := links.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// address skips IPv6 duplicate address detection: the agent hands out each address once, and a pod wants to bind at once.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet { return address(p).IPNet }

// newNamedNetNS makes a network namespace that ip-netns(8) sees too.
func newNamedNetNS(name string) (ns netns.NsHandle, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is in the new namespace and must end
		ns, err = netns.NewNamed(name)
	}()
	<-done
	if err != nil {
		return netns.None(), fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return ns, nil
}

// inNetNS runs fn on a thread of its own inside ns. Sockets that fn makes stay there; goroutines that it starts
// are outside.
func inNetNS(ns netns.NsHandle, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: a thread that cannot go back must not be used again
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		result <- fn()
	}()
	return <-result
}
