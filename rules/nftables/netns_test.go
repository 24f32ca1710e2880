package nftables

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// Prefixes of the edge's addresses, where NodePorts answer in these tests.
var edge = []netip.Prefix{netip.MustParsePrefix(netlab.EdgeIPv4 + "/32"), netip.MustParsePrefix(netlab.EdgeIPv6 + "/128")}

// A lab is a network with a Dataplane on its edge.
type lab struct {
	*netlab.Network
	*Dataplane
	options plan.Options
}

// newLab has VIPs of both families on the edge, and servers in the pods.
func newLab(t testing.TB, o plan.Options) *lab {
	t.Helper()
	n := netlab.New(t)
	for _, pod := range netlab.Pods {
		netlab.Serve(t, n.Node, netip.AddrPortFrom(netip.MustParseAddr(pod), 9376).String(), pod)
	}
	o.NodePortAddresses = edge
	l := &lab{Network: n, options: o}
	netlab.In(t, n.Edge, func() {
		netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
		netlab.Run(t, "ip", "route", "add", "198.51.100.200", "via", netlab.NodeIPv4)
		netlab.Run(t, "ip", "route", "add", "2001:db8:2::200", "via", netlab.NodeIPv6)
		for i := range 10 {
			netlab.Address(t, "lo", "198.51.100.1"+string(rune('0'+i)))
			netlab.Address(t, "lo", "2001:db8:2::1"+string(rune('0'+i)))
		}
		var err error
		if l.Dataplane, err = New(Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}); err != nil {
			t.Fatal(err)
		}
	})
	return l
}

// apply brings services into the kernel.
func (l *lab) apply(t testing.TB, services ...model.Service) {
	t.Helper()
	s := scenario.Snapshot(services...)
	s.Nodes[0].PodCIDRs = append(s.Nodes[0].PodCIDRs, netip.MustParsePrefix("fd00:1::/64"))
	s.Nodes[0].InternalIPs = append(s.Nodes[0].InternalIPs, netip.MustParseAddr(netlab.NodeIPv6))
	for _, f := range plan.Families {
		netlab.In(t, l.Edge, func() {
			if _, err := l.Apply(t.Context(), plan.New(s, f, l.options)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

const (
	threePods = " 10.1.0.2:9376 10.1.0.3:9376 10.1.0.4:9376 [fd00:1::2]:9376 [fd00:1::3]:9376 [fd00:1::4]:9376"
	onePod    = " 10.1.0.2:9376 [fd00:1::2]:9376"
)

func TestTraffic(t *testing.T) {
	l := newLab(t, plan.Options{VIPPorts: []uint16{443}})
	netlab.Serve(t, l.Edge, ":22", "sshd") // and whatever else the edge itself runs
	netlab.Serve(t, l.Edge, ":443", "l7")
	cluster := scenario.Service("cluster", "", "TCP 80 0:"+onePod)
	cluster.ClusterIPs = []netip.Addr{netip.MustParseAddr("198.51.100.200"), netip.MustParseAddr("2001:db8:2::200")}
	l.apply(t,
		scenario.Service("empty", "198.51.100.11 2001:db8:2::11", "TCP 80 30002:", "UDP 80 30002:"),
		scenario.Service("three", "198.51.100.10 2001:db8:2::10", "TCP 80 30001:"+threePods),
		scenario.Service("udp", "198.51.100.10 2001:db8:2::10", "UDP 53 30053:"+onePod),
		scenario.Service("itself", "198.51.100.12 2001:db8:2::12", "TCP 80 0: 192.0.2.1:22 [2001:db8:1::1]:22"),
		cluster,
	)
	for _, addr := range []string{netlab.EdgeIPv4, netlab.EdgeIPv6, "198.51.100.10", "2001:db8:2::10"} {
		if !netlab.Ping(t, l.Client, addr) {
			t.Errorf("%s does not answer a ping", addr)
		}
	}
	for _, tt := range []struct{ from, proto, to, want string }{
		{"client", "tcp", "EDGE:30001", "PODS"},
		{"client", "tcp", "VIP0:80", "PODS"},
		{"client", "udp", "EDGE:30053", "POD"},
		{"client", "udp", "VIP0:53", "POD"},
		{"client", "tcp", "CLUSTER:80", "POD"},
		{"edge", "tcp", "EDGE:30001", "PODS"},
		{"edge", "tcp", "VIP0:80", "PODS"},
		{"edge", "tcp", "CLUSTER:80", "POD"},
		{"client", "tcp", "EDGE:30002", "refused"},
		{"client", "udp", "EDGE:30002", "refused"},
		{"client", "tcp", "VIP1:80", "refused"},
		{"client", "udp", "VIP1:80", "refused"},
		{"edge", "tcp", "EDGE:30002", "refused"},
		{"edge", "tcp", "VIP1:80", "refused"},
		{"client", "tcp", "VIP2:80", "refused"}, // at the edge itself
		{"client", "tcp", "CLUSTER:81", "refused"},
		{"client", "udp", "CLUSTER:81", "refused"},
		{"client", "tcp", "VIP0:30001", "refused"}, // no NodePorts at a VIP
		{"client", "tcp", "VIP0:22", "refused"},
		{"client", "udp", "VIP0:22", "refused"},
		{"edge", "tcp", "VIP0:22", "refused"},
		{"client", "tcp", "EDGE:22", "sshd"},
		{"client", "tcp", "VIP0:443", "l7"},
	} {
		for family, words := range map[string]*strings.Replacer{
			"IPv4": strings.NewReplacer("EDGE", netlab.EdgeIPv4, "VIP", "198.51.100.1", "CLUSTER", "198.51.100.200",
				"PODS", "10.1.0.2 10.1.0.3 10.1.0.4", "POD", "10.1.0.2", "SOURCE", "10.0.0.1"),
			"IPv6": strings.NewReplacer("EDGE", "["+netlab.EdgeIPv6+"]", "VIP0", "[2001:db8:2::10]", "VIP1", "[2001:db8:2::11]",
				"VIP2", "[2001:db8:2::12]", "CLUSTER", "[2001:db8:2::200]",
				"PODS", "fd00:1::2 fd00:1::3 fd00:1::4", "POD", "fd00:1::2", "SOURCE", "fd00::1"),
		} {
			t.Run(tt.from+" to "+tt.proto+" "+tt.to+" "+family, func(t *testing.T) {
				l.expect(t, tt.from, tt.proto, words.Replace(tt.to), words.Replace(tt.want), words.Replace("SOURCE"))
			})
		}
	}
}

// expect connects often enough for each of the answers wanted to come. Pods have to see the source given.
func (l *lab) expect(t *testing.T, from, proto, to, want, source string) {
	t.Helper()
	ns := l.Client
	if from == "edge" {
		ns = l.Edge
	}
	missing := map[string]bool{}
	for name := range strings.FieldsSeq(want) {
		missing[name] = true
	}
	for range 60 {
		answer, seen, _ := strings.Cut(netlab.Ask(t, ns, proto, to), " ")
		if !strings.Contains(" "+want+" ", " "+answer+" ") {
			t.Fatalf("got %s %s, want %s", answer, seen, want)
		}
		if strings.HasSuffix(seen, ".1") || strings.HasSuffix(seen, "::1") {
			if strings.HasPrefix(seen, "192") || strings.HasPrefix(seen, "2001") {
				seen = source // the edge talks to itself
			}
		}
		if strings.Contains(strings.Join(netlab.Pods, " "), answer) && seen != source {
			t.Fatalf("%s sees source %s, want %s", answer, seen, source)
		}
		if delete(missing, answer); len(missing) == 0 {
			return
		}
	}
	t.Errorf("no answer in 60 from %v", missing)
}
