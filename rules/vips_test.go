package rules

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/rules/netlab"
)

// TestVIPsOfEarlierVersion holds that VIPs which stand on the link as addresses become routes, and that those which are wanted no more go.
func TestVIPsOfEarlierVersion(t *testing.T) {
	n := newNetwork(t)
	for _, ip := range netlab.Pods {
		netlab.Serve(t, n.Node, netip.AddrPortFrom(netip.MustParseAddr(ip), 9376).String(), "pod")
	}
	netlab.In(t, n.Edge, func() {
		netlab.Run(t, "ip", "link", "add", DefaultLink, "type", "bridge")
		netlab.Run(t, "ip", "link", "set", DefaultLink, "alias", linkAlias, "up")
		for _, vip := range []string{"198.51.100.10/32", "198.51.100.99/32", "2001:db8:2::10/128", "2001:db8:2::99/128"} {
			netlab.Run(t, "ip", "addr", "add", vip, "dev", DefaultLink)
		}
	})
	reconcile := startKernel(t, n, Options{})
	for range 2 {
		reconcile(webOfBoth())
		netlab.In(t, n.Edge, func() {
			if got, want := localVIPs(t), "198.51.100.10 2001:db8:2::10"; got != want {
				t.Errorf("local routes to %s, want %s", got, want)
			}
			if got := netlab.Run(t, "ip", "addr", "show", DefaultLink, "scope", "global"); got != "" {
				t.Errorf("addresses are left: %s", got)
			}
			if got := netlab.Run(t, "ip", "route", "show", "table", "local", "proto", "kernel", "dev", DefaultLink); got != "" {
				t.Errorf("routes to addresses are left: %s", got)
			}
			netlab.Run(t, "ip", "addr", "add", "198.51.100.98/32", "dev", DefaultLink) // by another program, when the routes stand
		})
	}
	for _, to := range []string{"198.51.100.10:80", "[2001:db8:2::10]:80"} {
		if got := netlab.Ask(t, n.Client, "tcp", to); !strings.HasPrefix(got, "pod ") {
			t.Errorf("%s: %s", to, got)
		}
	}
}

// TestVIPIsAnAddress holds that a local route is to others, and to what runs on the edge, what an address was: ARP is answered, as long
// as arp_ignore lets it, and a listener can be bound to it. What the edge itself sends does not come from there.
func TestVIPIsAnAddress(t *testing.T) {
	n := newNetwork(t)
	o := Options{}
	o.VIPPorts = []uint16{443}
	startKernel(t, n, o)(webOfBoth())
	netlab.Serve(t, n.Edge, "198.51.100.10:443", "l7")
	netlab.Serve(t, n.Client, "[::]:7", "client")
	netlab.In(t, n.Client, func() {
		netlab.Run(t, "ip", "route", "del", "198.51.100.0/24")
		netlab.Run(t, "ip", "route", "add", "198.51.100.0/24", "dev", "up0")
	})
	if got, want := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:443"), "l7 "+clientIP; got != want {
		t.Errorf("found by ARP: got %s, want %s", got, want)
	}
	for to, want := range map[string]string{clientIP + ":7": "client " + edgeIP, "[" + netlab.ClientIPv6 + "]:7": "client " + netlab.EdgeIPv6} {
		if got := netlab.Ask(t, n.Edge, "tcp", to); got != want {
			t.Errorf("the edge's own connection: got %s, want %s", got, want)
		}
	}
	netlab.In(t, n.Edge, func() { netlab.Run(t, "sysctl", "-qw", "net.ipv4.conf.front.arp_ignore=1") })
	netlab.In(t, n.Client, func() { netlab.Run(t, "ip", "neigh", "flush", "dev", "up0") })
	if netlab.Ping(t, n.Client, "198.51.100.10") {
		t.Error("ARP is answered for the VIP in spite of arp_ignore=1")
	}
}

// TestManyVIPs holds that tens of thousands come and go, with a system call for many of them and no news of it to Watch, and that each one which is refused is told.
func TestManyVIPs(t *testing.T) {
	const many = 30000
	netlab.In(t, netlab.Namespace(t), func() {
		n, err := openNetwork()
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		link, err := n.makeLink(DefaultLink, nil)
		if err != nil {
			t.Fatal(err)
		}
		news, err := n.follow()
		if err != nil {
			t.Fatal(err)
		}
		defer news.Close()
		var vips []netip.Addr
		for i := range many {
			vips = append(vips, netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}))
		}
		slices.SortFunc(vips, netip.Addr.Compare)
		routes := localRoutes(vips, link)
		for _, wrong := range []int{0, many / 2, many - 1} {
			routes[wrong].link = 1 << 20
		}
		refused, err := n.add(routes, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, err := range refused {
			if wrong := routes[i].link == 1<<20; wrong != (err != nil) {
				t.Fatalf("route %d: %v", i, err)
			}
		}
		here, err := n.readAddresses(DefaultLink)
		if err != nil || len(here.vips) != many-3 || here.vips[0] != vips[1] {
			t.Errorf("%d VIPs, %v", len(here.vips), err)
		}
		if sent := n.routes.Seq; sent > many+2 {
			t.Errorf("%d messages for %d routes and two lists", sent, many)
		}
		for range 2 { // also when they are gone already
			if refused, err = n.remove(localRoutes(vips, nil)); err != nil || slices.ContainsFunc(refused, func(err error) bool { return err != nil }) {
				t.Errorf("removal: %v", err)
			}
		}
		if got := localVIPs(t); got != "" {
			t.Errorf("left: %s", got)
		}
		netlab.Run(t, "ip", "link", "set", DefaultLink, "down")
		messages, _, err := news.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if first := messages[0].Header.Type; first == unix.RTM_DELROUTE && messages[0].Header.Pid == n.port {
			t.Errorf("our own doing is told")
		}
		if slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool { return m.Header.Type == unix.RTM_NEWROUTE }) {
			t.Error("new routes are told")
		}
	})
}

// TestRouteMessages holds that neither writing nor reading a route makes garbage.
func TestRouteMessages(t *testing.T) {
	vip := netip.MustParseAddr("2001:db8:2::10")
	route := localRoutes([]netip.Addr{vip}, nil)[0]
	b := make([]byte, 0, 256)
	if got := testing.AllocsPerRun(100, func() { b = route.appendTo(b[:0], unix.RTM_NEWROUTE, 0, 1) }); got > 1 {
		t.Errorf("%v allocations to write a route, want no more than its header", got)
	}
	wanted := unix.RtMsg{Family: unix.AF_INET6, Table: unix.RT_TABLE_LOCAL, Protocol: uint8(routeProtocol), Type: unix.RTN_LOCAL}
	message := b[unix.SizeofNlMsghdr:]
	if got := testing.AllocsPerRun(100, func() { _, _ = vipOf(message, wanted) }); got != 0 {
		t.Errorf("%v allocations to read a route", got)
	}
	if got, ok := vipOf(message, wanted); !ok || got != vip {
		t.Errorf("read %v, %v", got, ok)
	}
	for i := range message { // whatever is cut off, or is a route of others
		if _, ok := vipOf(message[:i], wanted); ok {
			t.Errorf("%d of %d bytes are taken for a route", i, len(message))
		}
	}
	for _, other := range []unix.RtMsg{{}, {Family: unix.AF_INET, Table: wanted.Table, Protocol: wanted.Protocol, Type: wanted.Type}} {
		if _, ok := vipOf(message, other); ok {
			t.Errorf("taken for one of %+v", other)
		}
	}
}
