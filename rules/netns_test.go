package rules

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"sallyport/rules/netlab"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

const (
	clientIP = netlab.ClientIPv4
	edgeIP   = netlab.EdgeIPv4
	nodeIP   = netlab.NodeIPv4
)

// podIPs are those of IPv4.
var podIPs = netlab.Pods[:3]

// newNetwork makes a network in which the edge has no routes to pods: to make them is the Kernel's.
func newNetwork(t testing.TB) *netlab.Network {
	t.Helper()
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	n := netlab.New(t)
	netlab.In(t, n.Edge, func() {
		netlab.Run(t, "ip", "route", "del", "10.1.0.0/24")
		netlab.Run(t, "ip", "route", "del", "fd00:1::/64")
	})
	// A new link takes the kernel up to a second to be of use for IPv6 (linkwatch).
	for range 5 {
		if netlab.Ping(t, n.Client, netlab.EdgeIPv6) && netlab.Ping(t, n.Edge, netlab.NodeIPv6) {
			return n
		}
	}
	t.Fatal("no IPv6 between client, edge and node")
	return n
}

// startKernel makes a Kernel in the edge's namespace and returns a function that reconciles there.
func startKernel(t testing.TB, n *netlab.Network, o Options) (reconcile func(*model.Snapshot)) {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	var k *Kernel
	var err error
	netlab.In(t, n.Edge, func() { k, err = NewKernel(o) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return func(s *model.Snapshot) {
		t.Helper()
		netlab.In(t, n.Edge, func() {
			if err := k.Reconcile(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// bothBackends runs a test with each flavour of iptables.
func bothBackends(t *testing.T, f func(t *testing.T, b Backend)) {
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		t.Run(string(b), func(t *testing.T) { f(t, b) })
	}
}

// everyDataplane runs a test with each dataplane of the kernel, and both flavours of iptables.
func everyDataplane(t *testing.T, f func(t *testing.T, o Options)) {
	bothBackends(t, func(t *testing.T, b Backend) { f(t, Options{Backend: b}) })
	t.Run("nftables", func(t *testing.T) { f(t, Options{Dataplane: DataplaneNFTables}) })
}

// dual has the services, and a node that has pods of both families.
func dual(services ...model.Service) *model.Snapshot {
	s := scenario.Snapshot(services...)
	node := &s.Nodes[0]
	node.InternalIPs = append(node.InternalIPs, netip.MustParseAddr(netlab.NodeIPv6))
	node.PodCIDRs = append(node.PodCIDRs, netip.MustParsePrefix("fd00:1::/64"))
	return s
}

// localVIPs are those that the kernel answers for in the caller's namespace, as the command ip shows them.
func localVIPs(t testing.TB) string {
	t.Helper()
	var vips []string
	for _, f := range []string{"-4", "-6"} {
		for line := range strings.Lines(netlab.Run(t, "ip", f, "route", "show", "table", "local", "proto", fmt.Sprint(int(routeProtocol)))) {
			words := strings.Fields(line)
			if words[0] != "local" || words[3] != DefaultLink {
				t.Errorf("no local route by %s: %s", DefaultLink, line)
			}
			vips = append(vips, words[1])
		}
	}
	return strings.Join(vips, " ")
}

func TestTraffic(t *testing.T) {
	const pods, pods6 = " 10.1.0.2:9376 10.1.0.3:9376 10.1.0.4:9376", " [fd00:1::2]:9376 [fd00:1::3]:9376 [fd00:1::4]:9376"
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		for _, ip := range netlab.Pods {
			netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), ip)
		}
		netlab.Serve(t, n.Edge, "[::]:22", "sshd") // and whatever else the edge itself runs
		netlab.Serve(t, n.Edge, "[::]:443", "l7")
		netlab.In(t, n.Edge, func() { // as a default route would: what the edge sends must first have a way
			netlab.Run(t, "ip", "route", "add", "198.51.100.13", "via", clientIP)
			netlab.Run(t, "ip", "route", "add", "2001:db8:2::13", "via", netlab.ClientIPv6)
		})
		o.VIPPorts = []uint16{443}
		external := scenario.Service("external", "", "TCP 81 0: 10.1.0.2:9376 [fd00:1::2]:9376")
		external.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.12"), netip.MustParseAddr("2001:db8:2::12")}
		external.ClusterIPs = []netip.Addr{netip.MustParseAddr("198.51.100.13"), netip.MustParseAddr("2001:db8:2::13")}
		startKernel(t, n, o)(dual(
			scenario.Service("empty", "198.51.100.11 2001:db8:2::11", "TCP 80 30002:", "UDP 80 30002:"),
			scenario.Service("three", "198.51.100.10 2001:db8:2::10", "TCP 80 30001:"+pods+pods6),
			scenario.Service("udp", "198.51.100.10 2001:db8:2::10", "UDP 53 30053: 10.1.0.2:9376 [fd00:1::2]:9376"),
			external,
		))
		for _, tt := range []struct{ from, proto, to, want string }{
			{"client", "icmp", "EDGE", "answers"},
			{"client", "icmp", "VIP10", "answers"},
			{"client", "tcp", "EDGE:30001", "PODS"},
			{"client", "tcp", "VIP10:80", "PODS"},
			{"client", "udp", "EDGE:30053", "POD"},
			{"client", "udp", "VIP10:53", "POD"},
			{"edge", "tcp", "EDGE:30001", "PODS"},
			{"edge", "tcp", "VIP10:80", "PODS"},
			{"client", "tcp", "VIP12:81", "POD"},
			{"client", "tcp", "VIP13:81", "POD"},
			{"edge", "tcp", "VIP13:81", "POD"},
			{"client", "tcp", "EDGE:30002", "refused"},
			{"client", "udp", "EDGE:30002", "refused"},
			{"client", "tcp", "VIP11:80", "refused"},
			{"client", "udp", "VIP11:80", "refused"},
			{"edge", "tcp", "EDGE:30002", "refused"},
			{"client", "tcp", "VIP10:30001", "refused"}, // no NodePorts at a VIP
			{"client", "tcp", "VIP10:22", "refused"},
			{"client", "udp", "VIP10:22", "refused"},
			{"edge", "tcp", "VIP10:22", "refused"},
			{"client", "tcp", "VIP12:22", "refused"},
			{"client", "tcp", "EDGE:22", "sshd"},
			{"client", "tcp", "VIP10:443", "l7"},
			{"edge", "tcp", "LO:30001", "refused"},
		} {
			for _, words := range []*strings.Replacer{
				strings.NewReplacer("EDGE", edgeIP, "VIP", "198.51.100.", "LO", "127.0.0.1", "PODS", "10.1.0.2 10.1.0.3 10.1.0.4", "POD", "10.1.0.2"),
				strings.NewReplacer("EDGE", "["+netlab.EdgeIPv6+"]", "VIP10", "[2001:db8:2::10]", "VIP11", "[2001:db8:2::11]", "VIP12", "[2001:db8:2::12]",
					"VIP13", "[2001:db8:2::13]", "LO", "[::1]", "PODS", "fd00:1::2 fd00:1::3 fd00:1::4", "POD", "fd00:1::2"),
			} {
				to, want := words.Replace(tt.to), words.Replace(tt.want)
				ns := map[string]netns.NsHandle{"client": n.Client, "edge": n.Edge}[tt.from]
				t.Run(tt.from+" to "+tt.proto+" "+to, func(t *testing.T) { expect(t, ns, tt.proto, to, want) })
			}
		}
	})
}

// expect asks until all of those wanted have answered, and none else. Pods must see the edge's address.
func expect(t *testing.T, ns netns.NsHandle, proto, to, want string) {
	if proto == "icmp" {
		if !netlab.Ping(t, ns, strings.Trim(to, "[]")) {
			t.Error("no answer to a ping")
		}
		return
	}
	missing := map[string]bool{}
	for name := range strings.FieldsSeq(want) {
		missing[name] = true
	}
	all := maps.Clone(missing)
	for range 60 {
		answer, source, _ := strings.Cut(netlab.Ask(t, ns, proto, to), " ")
		if !all[answer] {
			t.Fatalf("got %s %s, want %s", answer, source, want)
		}
		if slices.Contains(netlab.Pods, answer) && source != "10.0.0.1" && source != "fd00::1" {
			t.Fatalf("endpoint sees source %s, want the edge's", source)
		}
		if delete(missing, answer); len(missing) == 0 {
			return
		}
	}
	t.Errorf("%v did not answer in 60 tries", slices.Collect(maps.Keys(missing)))
}

// TestStaleUDP holds that a client's datagrams go to another endpoint when theirs is gone, and come to one that there was none of.
func TestStaleUDP(t *testing.T) {
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		for _, ip := range netlab.Pods {
			netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), ip)
		}
		reconcile := startKernel(t, n, o)
		for _, f := range []struct{ edge, vip, one, other string }{
			{edgeIP, "198.51.100.10", "10.1.0.2", "10.1.0.3"},
			{netlab.EdgeIPv6, "2001:db8:2::10", "fd00:1::2", "fd00:1::3"},
		} {
			dns := func(pods ...string) *model.Snapshot {
				to := ""
				for _, ip := range pods {
					to += " " + net.JoinHostPort(ip, "9376")
				}
				return dual(scenario.Service("dns", f.vip, "UDP 53 30053:"+to))
			}
			reconcile(dns(f.one))
			for _, to := range []string{net.JoinHostPort(f.vip, "53"), net.JoinHostPort(f.edge, "30053")} {
				conn, err := netlab.Dial(t, n.Client, "udp", to)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				for _, step := range []struct {
					s    *model.Snapshot
					want string
				}{{dns(f.one), f.one}, {dns(f.other), f.other}, {dns(), "refused"}, {dns(f.one), f.one}} {
					reconcile(step.s)
					if got := netlab.Exchange(conn); !strings.HasPrefix(got, step.want) {
						t.Errorf("%s: got %s, want %s", to, got, step.want)
					}
				}
			}
		}
	})
}
