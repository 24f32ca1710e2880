package conntrack

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"sallyport/rules/netlab"
)

// The network of these tests: a client, and an edge that has the VIPs, and the pods' addresses on its loopback.
type network struct{ client, edge netns.NsHandle }

// A family is the addresses of one IP version.
type family struct {
	name, iptables       string
	client, edge, vip    string
	pods                 [2]string
	prefix, route, local string
}

var families = []family{
	{"IPv4", "iptables", "192.0.2.9", "192.0.2.1", "198.51.100.53", [2]string{"10.1.0.2", "10.1.0.3"}, "/24", "198.51.100.0/24", "/32"},
	{"IPv6", "ip6tables", "2001:db8::9", "2001:db8::1", "2001:db8:1::53", [2]string{"2001:db8:2::2", "2001:db8:2::3"}, "/64", "2001:db8:1::/64", "/128"},
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{client: netlab.Namespace(t), edge: netlab.Namespace(t)}
	netlab.In(t, n.edge, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "front"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0", PeerNamespace: netlink.NsFd(n.client)}); err != nil {
			t.Fatal(err)
		}
		netlab.Run(t, "ip", "link", "set", "lo", "up")
		netlab.Run(t, "ip", "link", "set", "front", "up")
		for _, f := range families {
			netlab.Run(t, "ip", "addr", "add", f.edge+f.prefix, "dev", "front", "nodad")
			for _, a := range []string{f.vip, f.pods[0], f.pods[1]} {
				netlab.Run(t, "ip", "addr", "add", a+f.local, "dev", "lo", "nodad")
			}
			netlab.Run(t, f.iptables, "-w", "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP") // from here on, flows are tracked
		}
		if _, err := Size(Options{}); err != nil {
			t.Fatal(err)
		}
	})
	netlab.In(t, n.client, func() {
		netlab.Run(t, "ip", "link", "set", "up0", "up")
		for _, f := range families {
			netlab.Run(t, "ip", "addr", "add", f.client+f.prefix, "dev", "up0", "nodad")
			netlab.Run(t, "ip", "route", "add", f.route, "via", f.edge)
		}
	})
	return n
}

// translate has a port of the family's VIP, and one of the edge's own address, lead to a pod, as rules of Sallyport's do.
func (n *network) translate(t testing.TB, f family, proto, pod string) {
	t.Helper()
	netlab.In(t, n.edge, func() {
		n.sever(t, f)
		for _, to := range []string{f.vip + "/53", f.edge + "/30053"} {
			addr, port, _ := strings.Cut(to, "/")
			match := []string{f.iptables, "-w", "-t", "nat", "-A", "PREROUTING", "-p", proto, "-d", addr, "--dport", port, "-j"}
			netlab.Run(t, append(match, "CONNMARK", "--set-xmark", "0x53000000/0xff000000")...)
			netlab.Run(t, append(match, "DNAT", "--to-destination", net.JoinHostPort(pod, "53"))...)
		}
	})
}

func (n *network) sever(t testing.TB, f family) {
	netlab.In(t, n.edge, func() { netlab.Run(t, f.iptables, "-w", "-t", "nat", "-F") })
}
