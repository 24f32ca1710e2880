package rules

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// Both families of the same place, and what a Service leads to there.
var (
	places4 = map[string]string{"VIP": "198.51.100.10", "EDGE": edgeIP, "CLIENT": clientIP, "NODE": nodeIP, "BACK": "10.0.0.1",
		"A": "10.1.0.2", "B": "10.1.0.3", "C": "10.1.0.4"}
	places6 = map[string]string{"VIP": "2001:db8:2::10", "EDGE": netlab.EdgeIPv6, "CLIENT": netlab.ClientIPv6, "NODE": netlab.NodeIPv6, "BACK": "fd00::1",
		"A": "fd00:1::2", "B": "fd00:1::3", "C": "fd00:1::4"}
)

// A site is a network whose pods all serve, and a Kernel in its edge.
type site struct {
	*netlab.Network
	at        map[string]string // addresses of one family, by name
	reconcile func(*model.Snapshot)
	backend   Backend
}

// everySite runs a test with each dataplane, in each family.
func everySite(t *testing.T, o Options, f func(t *testing.T, s *site)) {
	everyDataplane(t, func(t *testing.T, d Options) {
		for family, at := range map[string]map[string]string{"IPv4": places4, "IPv6": places6} {
			t.Run(family, func(t *testing.T) {
				s := &site{Network: newNetwork(t), at: at, backend: d.Backend}
				for _, ip := range netlab.Pods {
					netlab.Serve(t, s.Node, net.JoinHostPort(ip, "9376"), ip)
				}
				with := o
				with.Dataplane, with.Backend = d.Dataplane, d.Backend
				s.reconcile = startKernel(t, s.Network, with)
				f(t, s)
			})
		}
	})
}

// service leads from the VIP's port 80 and NodePort 30001 to pods, given by their names.
func (s *site) service(pods string, change func(*model.Service)) *model.Snapshot {
	var to strings.Builder
	for pod := range strings.FieldsSeq(pods) {
		to.WriteString(" " + net.JoinHostPort(s.at[pod], "9376"))
	}
	svc := scenario.Service("web", s.at["VIP"], "TCP 80 30001:"+to.String(), "UDP 80 30001:"+to.String())
	if change != nil {
		change(&svc)
	}
	return dual(svc)
}

// ask connects, and gives the answer in names instead of addresses.
func (s *site) ask(t *testing.T, from netns.NsHandle, to string) string {
	t.Helper()
	host, port, _ := strings.Cut(to, ":")
	return s.named(netlab.Ask(t, from, "tcp", net.JoinHostPort(s.at[host], port)))
}

func (s *site) named(answer string) string {
	words := strings.Fields(answer)
	for i, word := range words {
		for name, addr := range s.at {
			if word == addr {
				words[i] = name
			}
		}
	}
	return strings.Join(words, " ")
}

func TestSourceRanges(t *testing.T) {
	everySite(t, Options{Options: plan.Options{SourceRangesOnNodePorts: true}}, func(t *testing.T, s *site) {
		for _, tt := range []struct{ ranges, want string }{
			{"CLIENT/32", "A BACK"},
			{"203.0.113.0/24 CLIENT/32 2001:db8:77::/48", "A BACK"},
			{"203.0.113.0/24 2001:db8:77::/48", "no answer"},
			{"", "no answer"}, // of the other family, perhaps
		} {
			s.reconcile(s.service("A", func(svc *model.Service) {
				svc.SourceRanges = &model.SourceRanges{}
				for r := range strings.FieldsSeq(tt.ranges) {
					if r == "CLIENT/32" {
						svc.SourceRanges.Prefixes = append(svc.SourceRanges.Prefixes, single(netip.MustParseAddr(s.at["CLIENT"])))
					} else {
						svc.SourceRanges.Prefixes = append(svc.SourceRanges.Prefixes, netip.MustParsePrefix(r))
					}
				}
				svc.SourceRanges.Prefixes = plan.Disjoint(svc.SourceRanges.Prefixes)
			}))
			for _, to := range []string{"VIP:80", "EDGE:30001"} {
				if got := s.ask(t, s.Client, to); !strings.HasPrefix(got, tt.want) {
					t.Errorf("%s with ranges %q: got %s, want %s", to, tt.ranges, got, tt.want)
				}
			}
		}
	})
}

// TestExactAffinity holds that a client stays with its endpoint while others come and go and Sallyport starts anew, and no longer than
// that endpoint is there.
func TestExactAffinity(t *testing.T) {
	everySite(t, Options{}, func(t *testing.T, s *site) {
		sticky := func(svc *model.Service) { svc.Affinity = &model.Affinity{Timeout: time.Hour, Exact: true} }
		s.reconcile(s.service("A B C", sticky))
		home := s.ask(t, s.Client, "VIP:80")
		stays := func(pods string) {
			t.Helper()
			s.reconcile(s.service(pods, sticky))
			for range 5 {
				if got := s.ask(t, s.Client, "VIP:80"); got != home {
					t.Fatalf("with %s: got %s, want %s as before", pods, got, home)
				}
			}
		}
		name, _, _ := strings.Cut(home, " ")
		stays("A B C")
		stays(name)
		stays("A B C")
		others := strings.Join(strings.Fields(strings.Replace("A B C", name, "", 1)), " ")
		s.reconcile(s.service(others, sticky))
		if got := s.ask(t, s.Client, "VIP:80"); got == home {
			t.Errorf("its endpoint is gone: still %s", got)
		}
		s.reconcile(s.service("A B C", nil))
		netlab.In(t, s.Edge, func() {
			if sets := netlab.Run(t, "ipset", "list", "-n"); sets != "" {
				t.Errorf("sets stay that no one wants: %s", sets)
			}
			if _, err := Cleanup(context.Background(), Options{}); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestLimits(t *testing.T) {
	everySite(t, Options{}, func(t *testing.T, s *site) {
		count := func(l model.Limits) (n int) {
			s.reconcile(s.service("A B", func(svc *model.Service) { svc.Limits = &l }))
			var conns []net.Conn
			for range 6 {
				var conn net.Conn
				var err error
				netlab.In(t, s.Client, func() { conn, err = net.DialTimeout("tcp", net.JoinHostPort(s.at["VIP"], "80"), 200*time.Millisecond) })
				if err == nil {
					conns = append(conns, conn)
				}
			}
			for _, c := range conns {
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
			return len(conns)
		}
		for _, tt := range []struct {
			limits model.Limits
			want   int
		}{
			{model.Limits{}, 6},
			{model.Limits{PerClient: 3}, 3},
			{model.Limits{Total: 4}, 4},
			{model.Limits{NewPerSecond: 1000}, 6},
		} {
			if got := count(tt.limits); got != tt.want {
				t.Errorf("%+v: %d of 6 connections, want %d", tt.limits, got, tt.want)
			}
		}
		if got := count(model.Limits{NewPerSecond: 1}); got < 1 || got > 3 { // of some 200 ms each
			t.Errorf("one a second: %d of 6 connections in about a second", got)
		}
	})
}

// TestHairpin holds that a pod which calls its own Service gets an answer, by whichever endpoint, itself included.
func TestHairpin(t *testing.T) {
	for _, path := range []plan.ReturnPath{plan.ReturnDirect, plan.ReturnEdge} {
		t.Run(string(path), func(t *testing.T) {
			everySite(t, Options{Options: plan.Options{ReturnPath: path}}, func(t *testing.T, s *site) {
				s.reconcile(s.service("A", nil))
				netlab.In(t, s.Node, func() {
					netlab.Run(t, "ip", "route", "add", s.at["VIP"], "via", s.at["BACK"], "src", s.at["A"])
				})
				if got := s.ask(t, s.Node, "VIP:80"); got != "A BACK" {
					t.Errorf("got %s, want A, which sees the edge", got)
				}
			})
		})
	}
}

// TestKeepSource holds that pods see the client where nodes route clients through the edge.
func TestKeepSource(t *testing.T) {
	everySite(t, Options{Options: plan.Options{ReturnPath: plan.ReturnEdge}}, func(t *testing.T, s *site) {
		s.reconcile(s.service("A", nil))
		s.routeClients(t)
		for _, to := range []string{"VIP:80", "EDGE:30001"} {
			if got := s.ask(t, s.Client, to); got != "A CLIENT" {
				t.Errorf("%s: got %s, want A, which sees the client", to, got)
			}
		}
		if got := s.ask(t, s.Edge, "VIP:80"); got != "A BACK" {
			t.Errorf("from the edge: got %s, want A, which sees the edge", got)
		}
	})
}

// routeClients has the node reach the client through the edge.
func (s *site) routeClients(t *testing.T) {
	netlab.In(t, s.Node, func() { netlab.Run(t, "ip", "route", "add", s.at["CLIENT"], "via", s.at["BACK"]) })
}

// TestGroups holds that connections to VIPs take an address of their group, which then stands on the edge and answers nothing else.
func TestGroups(t *testing.T) {
	group := plan.Group{Name: "a", SNATAddresses: []plan.Range{
		{First: netip.MustParseAddr("10.0.0.101"), Last: netip.MustParseAddr("10.0.0.104")},
		{First: netip.MustParseAddr("fd00::101"), Last: netip.MustParseAddr("fd00::104")}}}
	everySite(t, Options{Options: plan.Options{Groups: []plan.Group{group}}}, func(t *testing.T, s *site) {
		netlab.Serve(t, s.Edge, "[::]:22", "sshd")
		near := map[string]string{"10.1.0.2": "10.0.0.106", "fd00:1::2": "fd00::106"}[s.at["A"]] // a VIP among the group's addresses
		s.reconcile(s.service("A", func(svc *model.Service) { svc.VIPs = append(svc.VIPs, netip.MustParseAddr(near)) }))
		// The kernel answers NDP for addresses of the link that it is asked on alone (RFC 4861, section 7.2.3).
		netlab.In(t, s.Node, func() { netlab.Run(t, "ip", "route", "add", "fd00::100/120", "via", "fd00::1") })
		got := s.ask(t, s.Client, "VIP:80")
		if name, source, _ := strings.Cut(got, " "); name != "A" || !strings.Contains(source, "10.0.0.10") && !strings.Contains(source, "fd00::10") {
			t.Errorf("got %s, want A, which sees an address of the group", got)
		}
		if got := s.ask(t, s.Client, "EDGE:30001"); got != "A BACK" {
			t.Errorf("NodePort: got %s, want A, which sees the edge's own address", got)
		}
		held := map[string]string{"10.1.0.2": "10.0.0.102", "fd00:1::2": "fd00::102"}[s.at["A"]]
		if !netlab.Ping(t, s.Node, held) {
			t.Errorf("%s does not answer a ping", held)
		}
		if got := netlab.Ask(t, s.Node, "tcp", net.JoinHostPort(held, "22")); got == "refused" || strings.HasPrefix(got, "sshd") {
			t.Errorf("port 22 of %s: %s, want no answer", held, got)
		}
		if got := netlab.Ask(t, s.Node, "tcp", net.JoinHostPort(near, "22")); got != "refused" {
			t.Errorf("port 22 of the VIP %s: %s, want refused", near, got)
		}
	})
}

// TestForwardDrop holds that the policies of other firewalls do not stop what is Sallyport's.
func TestForwardDrop(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		n := newNetwork(t)
		for _, ip := range netlab.Pods {
			netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), ip)
		}
		netlab.In(t, n.Edge, func() {
			for _, f := range plan.Families {
				command := commandOf(f) + "-" + string(b)
				netlab.Run(t, command, "-P", "FORWARD", "DROP")
				netlab.Run(t, command, "-A", "FORWARD", "-j", "REJECT")
			}
		})
		startKernel(t, n, Options{Backend: b})(dual(scenario.Service("web", "198.51.100.10 2001:db8:2::10", "TCP 80 30001: 10.1.0.2:9376 [fd00:1::2]:9376")))
		for _, to := range []string{"198.51.100.10:80", "[2001:db8:2::10]:80", edgeIP + ":30001", "[" + netlab.EdgeIPv6 + "]:30001"} {
			if got := netlab.Ask(t, n.Client, "tcp", to); !strings.HasSuffix(got, ":2 fd00::1") && got != "10.1.0.2 10.0.0.1" {
				t.Errorf("%s: %s", to, got)
			}
		}
	})
}

// TestNoIPv6 holds that a machine without IPv6 serves IPv4, and says of what it cannot serve why.
func TestNoIPv6(t *testing.T) {
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
		netlab.In(t, n.Edge, func() {
			netlab.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
			k, err := NewKernel(o)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			s := dual(scenario.Service("web", "198.51.100.10 2001:db8:2::10", "TCP 80 30001: 10.1.0.2:9376 [fd00:1::2]:9376"))
			if err := k.Reconcile(context.Background(), s); err != nil {
				t.Fatal(err)
			}
			const want = "[Service default/web: status.loadBalancer.ingress: 2001:db8:2::10 is not served: this edge has no IPv6 (net.ipv6.conf.all.disable_ipv6 is 1) (Unsupported)]"
			if got := fmt.Sprint(k.Problems()); got != want {
				t.Errorf("Problems %s\nwant %s", got, want)
			}
		})
		if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:80"); got != "pod 10.0.0.1" {
			t.Errorf("IPv4: %s", got)
		}
	})
}

// TestPrimaryAddress holds that NodePorts are at the address that the default route leaves by, and follow it, and nowhere else.
func TestPrimaryAddress(t *testing.T) {
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		for _, ip := range netlab.Pods {
			netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), "pod")
		}
		reconcile := startKernel(t, n, o)
		s := dual(scenario.Service("web", "", "TCP 80 30001: 10.1.0.2:9376 [fd00:1::2]:9376"))
		at := func(want string, addrs ...string) {
			t.Helper()
			for _, a := range addrs {
				if got := netlab.Ask(t, n.Client, "tcp", net.JoinHostPort(a, "30001")); !strings.HasPrefix(got, want) {
					t.Errorf("%s: got %s, want %s", a, got, want)
				}
			}
		}
		netlab.In(t, n.Client, func() {
			netlab.Run(t, "ip", "route", "add", "10.0.0.0/24", "via", edgeIP)
			netlab.Run(t, "ip", "route", "add", "fd00::/64", "via", netlab.EdgeIPv6)
		})
		reconcile(s)
		at("pod", edgeIP, netlab.EdgeIPv6)
		at("refused", "10.0.0.1", "fd00::1")
		netlab.In(t, n.Edge, func() {
			netlab.Run(t, "ip", "route", "add", "default", "via", "10.0.0.99")
			netlab.Run(t, "ip", "route", "add", "default", "via", "fd00::99")
		})
		reconcile(s)
		at("refused", edgeIP, netlab.EdgeIPv6)
		at("pod", "10.0.0.1", "fd00::1")
	})
}
