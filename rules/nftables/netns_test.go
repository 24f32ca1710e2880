package nftables

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

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
		if slices.Contains(netlab.Pods, answer) && seen != source {
			t.Fatalf("%s sees source %s, want %s", answer, seen, source)
		}
		delete(missing, answer)
		if len(missing) == 0 {
			return
		}
	}
	t.Errorf("no answer in 60 from %v", missing)
}

// first is the word of an answer that names the pod.
func first(answer string) string {
	name, _, _ := strings.Cut(answer, " ")
	return name
}

func TestSourceRangesOfPackets(t *testing.T) {
	l := newLab(t, plan.Options{})
	svc := scenario.Service("ranges", "198.51.100.10 2001:db8:2::10", "TCP 80 30001:"+onePod, "TCP 81 0:")
	for _, tt := range []struct{ ranges, v4, v6, v4Empty string }{
		{"192.0.2.0/24 203.0.113.0/24 2001:db8:1::/64", "10.1.0.2", "fd00:1::2", "refused"},
		{"192.0.2.0/29", "no answer", "no answer", "no answer"},
		{"0.0.0.0/0", "10.1.0.2", "no answer", "refused"},
	} {
		svc.SourceRanges = &model.SourceRanges{Prefixes: prefixes(tt.ranges)}
		l.apply(t, svc)
		for to, want := range map[string]string{"198.51.100.10:80": tt.v4, "[2001:db8:2::10]:80": tt.v6, "198.51.100.10:81": tt.v4Empty,
			netlab.EdgeIPv4 + ":30001": "10.1.0.2"} {
			if got := first(netlab.Ask(t, l.Client, "tcp", to)); got != first(want) {
				t.Errorf("ranges %s, to %s: got %s, want %s", tt.ranges, to, got, want)
			}
		}
	}
}

func TestLimitsOfPackets(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits model.Limits
	}{
		{"of a client", model.Limits{PerClient: 3}},
		{"in all", model.Limits{Total: 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, plan.Options{})
			svc := scenario.Service("limited", "198.51.100.10 2001:db8:2::10", "TCP 80 0:"+threePods, "TCP 81 0:"+threePods)
			svc.Limits = &tt.limits
			l.apply(t, svc)
			for _, vip := range []string{"198.51.100.10", "[2001:db8:2::10]"} {
				for i := range 4 { // one after the other by two ports, all of them kept
					conn, err := netlab.Dial(t, l.Client, "tcp", vip+":8"+string(rune('0'+i%2)))
					if err == nil {
						defer conn.Close()
					}
					if let := err == nil; let != (i < 3) {
						t.Errorf("connection %d to %s: %v, want 3 to be let", i+1, vip, err)
					}
				}
			}
		})
	}
}

// TestNewConnectionsOfPackets sends datagrams from ports of their own, which are not sent again: it is let as many as there may be
// at once, and as there were seconds for.
func TestNewConnectionsOfPackets(t *testing.T) {
	const limit, sent = 3, 100
	l := newLab(t, plan.Options{})
	svc := scenario.Service("limited", "198.51.100.10 2001:db8:2::10", "UDP 80 0:"+onePod)
	svc.Limits = &model.Limits{NewPerSecond: limit}
	l.apply(t, svc)
	for _, vip := range []string{"198.51.100.10:80", "[2001:db8:2::10]:80"} {
		var conns []net.Conn
		for range sent {
			conn, err := netlab.Dial(t, l.Client, "udp", vip)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conns = append(conns, conn)
		}
		start := time.Now()
		for _, conn := range conns {
			if _, err := conn.Write([]byte("hello\n")); err != nil {
				t.Fatal(err)
			}
		}
		most := limit + 1 + int(limit*time.Since(start).Seconds())
		deadline := time.Now().Add(2 * time.Second)
		answered := 0
		for _, conn := range conns {
			if err := conn.SetDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 100)); err == nil {
				answered++
			}
		}
		if answered < limit || answered > most {
			t.Errorf("%s: %d of %d are let, want %d to %d", vip, answered, sent, limit, most)
		}
	}
}

// TestStickyPackets has a client keep its endpoint, by each address of the service port, until that is gone, or the time.
func TestStickyPackets(t *testing.T) {
	l := newLab(t, plan.Options{})
	sticky := func(endpoints string, timeout time.Duration) model.Service {
		svc := scenario.Service("sticky", "198.51.100.10 2001:db8:2::10", "TCP 80 30001:"+endpoints)
		svc.Affinity = &model.Affinity{Timeout: timeout, Exact: true}
		return svc
	}
	l.apply(t, sticky(onePod, time.Hour))
	ask := func(to string) string { return first(netlab.Ask(t, l.Client, "tcp", to)) }
	for _, family := range []struct{ vip, nodePort, one string }{
		{"198.51.100.10:80", netlab.EdgeIPv4 + ":30001", "10.1.0.2"}, {"[2001:db8:2::10]:80", "[" + netlab.EdgeIPv6 + "]:30001", "fd00:1::2"},
	} {
		l.apply(t, sticky(onePod, time.Hour))
		if got := ask(family.vip); got != family.one {
			t.Fatalf("%s: got %s, want %s", family.vip, got, family.one)
		}
		l.apply(t, sticky(threePods, time.Hour)) // whichever the hash chooses now
		for _, to := range []string{family.vip, family.nodePort} {
			for range 5 {
				if got := ask(to); got != family.one {
					t.Errorf("%s: got %s, want what it had, %s", to, got, family.one)
				}
			}
		}
		others := strings.ReplaceAll(strings.ReplaceAll(threePods, " 10.1.0.2:9376", ""), " [fd00:1::2]:9376", "")
		l.apply(t, sticky(others, time.Hour))
		other := ask(family.vip)
		if other == family.one || !slices.Contains(netlab.Pods, other) {
			t.Errorf("%s: got %s, want another endpoint", family.vip, other)
		}
		l.apply(t, sticky(threePods, time.Hour))
		restarted := *l // a new process writes everything anew
		netlab.In(t, l.Edge, func() {
			var err error
			if restarted.Dataplane, err = New(Options{}); err != nil {
				t.Fatal(err)
			}
		})
		restarted.apply(t, sticky(threePods, time.Hour))
		l = &restarted
		if got := ask(family.nodePort); got != other {
			t.Errorf("%s: got %s, want what it had last, %s", family.nodePort, got, other)
		}
	}
}

func TestStickyEnds(t *testing.T) {
	l := newLab(t, plan.Options{})
	svc := scenario.Service("sticky", "198.51.100.10", "TCP 80 0:"+onePod)
	svc.Affinity = &model.Affinity{Timeout: time.Second, Exact: true}
	l.apply(t, svc)
	if got := first(netlab.Ask(t, l.Client, "tcp", "198.51.100.10:80")); got != "10.1.0.2" {
		t.Fatalf("got %s", got)
	}
	netlab.In(t, l.Edge, func() {
		for deadline := time.Now().Add(5 * time.Second); ; {
			if !strings.Contains(netlab.Run(t, "nft", "list", "map", "ip", Name, clients), netlab.ClientIPv4) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("a client is kept for longer than a second")
			}
		}
	})
}

// TestSources has pods see the client's address, the group's, or the edge's.
func TestSources(t *testing.T) {
	group := plan.Group{Name: "a", SNATAddresses: []plan.Range{
		{First: netip.MustParseAddr("10.0.0.100"), Last: netip.MustParseAddr("10.0.0.103")},
		{First: netip.MustParseAddr("fd00::100"), Last: netip.MustParseAddr("fd00::100")}}}
	services := []model.Service{scenario.Service("web", "198.51.100.10 2001:db8:2::10", "TCP 80 30001:"+onePod, "UDP 80 0:"+onePod)}
	for _, tt := range []struct {
		name string
		o    plan.Options
		want map[string]string // of from, to
	}{
		{"of the group", plan.Options{Groups: []plan.Group{group}}, map[string]string{
			"client tcp 198.51.100.10:80": "10.0.0.10", "client tcp [2001:db8:2::10]:80": "fd00::100", "client udp [2001:db8:2::10]:80": "fd00::100",
			"client tcp " + netlab.EdgeIPv4 + ":30001": "10.0.0.1", "edge tcp 198.51.100.10:80": "10.0.0.1",
		}},
		{"of the client", plan.Options{ReturnPath: plan.ReturnEdge}, map[string]string{
			"client tcp 198.51.100.10:80": netlab.ClientIPv4, "client tcp [2001:db8:2::10]:80": netlab.ClientIPv6, "client udp 198.51.100.10:80": netlab.ClientIPv4,
			"node tcp 198.51.100.10:80": "10.0.0.1", "node tcp [2001:db8:2::10]:80": "fd00::1", // hairpin
			"edge tcp 198.51.100.10:80": "10.0.0.1",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, tt.o)
			netlab.In(t, l.Edge, func() {
				for _, a := range []string{"10.0.0.100", "10.0.0.101", "10.0.0.102", "10.0.0.103", "fd00::100"} {
					netlab.Address(t, "back", a)
				}
			})
			netlab.In(t, l.Node, func() {
				netlab.Run(t, "ip", "route", "add", "default", "via", "10.0.0.1")
				netlab.Run(t, "ip", "route", "add", "default", "via", "fd00::1")
			})
			l.apply(t, services...)
			for what, want := range tt.want {
				f := strings.Fields(what)
				ns := map[string]int{"client": int(l.Client), "edge": int(l.Edge), "node": int(l.Node)}[f[0]]
				_, seen, _ := strings.Cut(netlab.Ask(t, netns.NsHandle(ns), f[1], f[2]), " ")
				if !strings.HasPrefix(seen, want) || seen == "" {
					t.Errorf("%s: the pod sees %q, want %s", what, seen, want)
				}
			}
		})
	}
}

// TestTakeOver moves connections to an edge that has never seen them, by having this one forget. The pods' packets must
// get no answer there; with the next one of the client the connection goes on.
func TestTakeOver(t *testing.T) {
	group := plan.Group{Name: "a", SNATAddresses: []plan.Range{{First: netip.MustParseAddr("10.0.0.100"), Last: netip.MustParseAddr("10.0.0.103")}}}
	for name, o := range map[string]plan.Options{
		"of the group":  {Groups: []plan.Group{group}},
		"of the client": {ReturnPath: plan.ReturnEdge},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, o)
			netlab.In(t, l.Edge, func() {
				for i := range 4 {
					netlab.Address(t, "back", "10.0.0.10"+string(rune('0'+i)))
				}
			})
			netlab.In(t, l.Node, func() { netlab.Run(t, "ip", "route", "add", "default", "via", "10.0.0.1") })
			l.apply(t, scenario.Service("web", "198.51.100.10", "TCP 80 0:"+threePods))
			var conns []net.Conn
			for range 20 {
				conn, err := netlab.Dial(t, l.Client, "tcp", "198.51.100.10:80")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if answer := netlab.Exchange(conn); !slices.Contains(netlab.Pods, first(answer)) {
					t.Fatalf("got %s", answer)
				}
				conns = append(conns, conn)
			}
			netlab.In(t, l.Edge, func() {
				if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
					t.Fatal(err)
				}
			})
			for i, conn := range conns {
				if answer := netlab.Exchange(conn); answer != "hello" {
					t.Errorf("connection %d: got %s, want its echo", i, answer)
				}
			}
		})
	}
}
