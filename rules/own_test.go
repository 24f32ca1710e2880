package rules

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// TestRoutesOfOthers holds that a Node cannot draw traffic to itself that is not for its pods.
func TestRoutesOfOthers(t *testing.T) {
	n := newNetwork(t)
	netlab.In(t, n.Edge, func() {
		netlab.Run(t, "ip", "addr", "add", "10.3.0.1/16", "dev", "back")
		netlab.Run(t, "ip", "route", "add", "203.0.113.0/24", "nexthop", "via", "10.0.0.98", "nexthop", "via", "192.0.2.98")
	})
	reconcile := startKernel(t, n, Options{})
	for _, tt := range []struct{ why, internalIP, podCIDR, want string }{
		{"default route", "10.0.0.66", "0.0.0.0/0", ""},
		{"half of all addresses", "10.0.0.66", "128.0.0.0/1", ""},
		{"the nodes' network", "10.0.0.66", "10.0.0.0/24", ""},
		{"part of the nodes' network", "10.0.0.66", "10.0.0.128/25", ""},
		{"around the nodes' network", "10.0.0.66", "10.0.0.0/16", ""},
		{"a client", "10.0.0.66", clientIP + "/32", ""},
		{"the edge", "10.0.0.66", edgeIP + "/32", ""},
		{"around a VIP, which stays the edge's", "10.0.0.66", "198.51.100.0/24", "198.51.100.0/24 via 10.0.0.66"},
		{"a node that is not on the edge's networks", "10.0.0.66", "172.16.5.0/24", ""},
		{"an API server that is no node", "10.0.0.66", "172.16.6.6/32", ""},
		{"loopback", "10.0.0.66", "127.0.0.0/8", ""},
		{"link-local", "10.0.0.66", "169.254.169.254/32", ""},
		{"multicast", "10.0.0.66", "224.0.0.0/8", ""},
		{"pods of another node", "10.0.0.66", "10.1.0.2/32", ""},
		{"around the pods of another node", "10.0.0.66", "10.1.0.0/16", ""},
		{"through the edge itself", "10.0.0.1", "10.2.0.0/24", ""},
		{"its own pods", "10.0.0.66", "10.2.0.0/24", "10.2.0.0/24 via 10.0.0.66"},
		{"inside a network that is routed as a whole", "10.0.0.66", "203.0.113.64/26", "203.0.113.64/26 via 10.0.0.66"},
	} {
		t.Run(tt.why, func(t *testing.T) {
			api := scenario.Service("kubernetes", "", "TCP 443 0:")
			api.Ports[0].Endpoints = []model.Endpoint{{Addr: netip.MustParseAddrPort("172.16.6.6:6443"), Ready: true}}
			s := scenario.Snapshot(api, web(" 10.1.0.2:9376").Services[0])
			s.Nodes = append(s.Nodes, scenario.Node("node-2", "172.16.5.5", "10.9.0.0/24"), scenario.Node("node-3", tt.internalIP, tt.podCIDR))
			reconcile(s)
			reconcile(s) // now with the VIP on the link
			var routes []string
			netlab.In(t, n.Edge, func() {
				for line := range strings.Lines(netlab.Run(t, "ip", "-4", "route", "show", "proto", fmt.Sprint(int(routeProtocol)))) {
					routes = append(routes, strings.Join(strings.Fields(line)[:3], " "))
				}
			})
			want := strings.TrimSuffix("10.1.0.0/24 via "+nodeIP+", "+tt.want, ", ")
			if got := strings.Join(routes, ", "); got != want {
				t.Errorf("routes %s; want %s", got, want)
			}
			if !netlab.Ping(t, n.Client, "198.51.100.10") {
				t.Error("the VIP does not answer")
			}
			if s.Nodes[2].PodCIDRs[0] != netip.MustParsePrefix(tt.podCIDR) {
				t.Error("Reconcile changed the snapshot")
			}
		})
	}
}

// TestVIPsOfOthers holds that the edge does not answer in the place of another machine that the cluster depends on.
func TestVIPsOfOthers(t *testing.T) {
	n := newNetwork(t)
	netlab.In(t, n.Edge, func() { netlab.Run(t, "ip", "route", "add", "default", "via", "192.0.2.254") })
	startKernel(t, n, Options{})(scenario.Snapshot(scenario.Service("thief", nodeIP+" 192.0.2.254 192.0.2.200", "TCP 80 0: 10.1.0.2:9376")))
	netlab.In(t, n.Edge, func() {
		if got := localVIPs(t); got != "192.0.2.200" {
			t.Errorf("VIPs %s; want 192.0.2.200 only", got)
		}
	})
}

// TestEndpointAtEdge holds that no endpoint leads to what the edge itself runs.
func TestEndpointAtEdge(t *testing.T) {
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		netlab.Serve(t, n.Edge, "0.0.0.0:22", "sshd")
		netlab.Serve(t, n.Node, "10.1.0.2:22", "pod")
		startKernel(t, n, o)(scenario.Snapshot(
			scenario.Service("thief", "198.51.100.10", "TCP 80 30001: 10.0.0.1:22", "UDP 80 30001: "+edgeIP+":22", "TCP 81 0: 198.51.100.10:22"),
			scenario.Service("web", "198.51.100.11", "TCP 80 0: 10.1.0.2:22")))
		for _, tt := range []struct{ proto, to, want string }{
			{"tcp", "198.51.100.10:80", "refused"},
			{"udp", "198.51.100.10:80", "refused"},
			{"tcp", "198.51.100.10:81", "refused"},
			{"tcp", edgeIP + ":30001", "refused"},
			{"udp", edgeIP + ":30001", "refused"},
			{"tcp", edgeIP + ":22", "sshd " + clientIP},
			{"tcp", "198.51.100.11:80", "pod 10.0.0.1"},
		} {
			if got := netlab.Ask(t, n.Client, tt.proto, tt.to); got != tt.want {
				t.Errorf("%s %s: got %s, want %s", tt.proto, tt.to, got, tt.want)
			}
		}
	})
}

// TestMarksOfOthers holds that our rules work beside a program that keeps packet marks with connections, as those for
// several uplinks do: answers then carry the marks of requests.
func TestMarksOfOthers(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		n := newNetwork(t)
		netlab.In(t, n.Edge, func() {
			for _, rule := range []string{"PREROUTING -j CONNMARK --restore-mark", "OUTPUT -j CONNMARK --restore-mark", "POSTROUTING -j CONNMARK --save-mark"} {
				netlab.Run(t, append([]string{"iptables-" + string(b), "-t", "mangle", "-A"}, strings.Fields(rule)...)...)
			}
		})
		netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
		startKernel(t, n, Options{Backend: b})(web(" 10.1.0.2:9376"))
		for name, ns := range map[string]netns.NsHandle{"client": n.Client, "edge": n.Edge} {
			for _, to := range []string{edgeIP + ":30001", "198.51.100.10:80"} {
				if got := netlab.Ask(t, ns, "tcp", to); got != "pod 10.0.0.1" {
					t.Errorf("%s to %s: got %s", name, to, got)
				}
			}
		}
	})
}

// TestRouteFailsAlone holds that a route which the kernel refuses keeps no rule from being applied.
func TestRouteFailsAlone(t *testing.T) {
	n := newNetwork(t)
	netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
	s := web(" 10.1.0.2:9376")
	s.Nodes = append(s.Nodes, scenario.Node("node-2", "0.0.0.0", "10.2.0.0/24"))
	netlab.In(t, n.Edge, func() {
		k, err := NewKernel(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if err := k.Reconcile(context.Background(), s); err == nil || !strings.Contains(err.Error(), "route to 10.2.0.0/24") {
			t.Errorf("got error %v, want one about the route", err)
		}
	})
	for _, to := range []string{edgeIP + ":30001", "198.51.100.10:80"} {
		if got := netlab.Ask(t, n.Client, "tcp", to); got != "pod 10.0.0.1" {
			t.Errorf("%s: got %s", to, got)
		}
	}
}

func TestOverlapping(t *testing.T) {
	var list []netip.Prefix
	for s := range strings.FieldsSeq("10.0.0.0/24 10.0.1.0/25 10.0.2.0/23 10.1.0.0/16") {
		list = append(list, netip.MustParsePrefix(s))
	}
	for p, want := range map[string]string{
		"10.0.0.0/24": "10.0.0.0/24", "10.0.0.255/32": "10.0.0.0/24", "10.0.1.128/25": "", "10.0.3.7/32": "10.0.2.0/23",
		"10.0.0.0/8": "10.0.0.0/24", "10.0.2.0/24": "10.0.2.0/23", "10.1.0.0/15": "10.0.0.0/24", "10.2.0.0/16": "", "9.0.0.0/8": "", "10.0.2.128/30": "10.0.2.0/23",
	} {
		_, got := overlapping(list, netip.MustParsePrefix(p).Masked())
		if want == "" && got.IsValid() || want != "" && got.String() != want {
			t.Errorf("%s: got %v, want %q", p, got, want)
		}
	}
}

// TestProblems holds that what is refused is said of the object that asks for it, and no longer than it is so.
func TestProblems(t *testing.T) {
	n := newNetwork(t)
	netlab.In(t, n.Edge, func() {
		netlab.Run(t, "ip", "route", "add", "default", "via", "192.0.2.254")
		k, err := NewKernel(Options{APIServers: []netip.Addr{netip.MustParseAddr("172.16.6.6")}})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if got := k.Problems(); got != nil {
			t.Errorf("before the first Reconcile: %v", got)
		}
		bad := scenario.Service("bad", "192.0.2.254 192.0.2.1 172.16.6.6 192.0.2.200", "TCP 80 0:")
		bad.RequestField = "spec.loadBalancerIP"
		many := scenario.Service("many", "192.0.2.201", "TCP 80 0:"+scenario.Destinations(65))
		many.Affinity = &model.Affinity{Timeout: time.Hour, Exact: true}
		s := scenario.Snapshot(bad, many)
		s.Nodes = append(s.Nodes, scenario.Node("node-2", edgeIP, "10.1.0.128/25"), scenario.Node("node-3", "0.0.0.0", "10.3.0.0/24"), scenario.Node("node-4", nodeIP, "172.16.6.0/24"))
		if err := k.Reconcile(context.Background(), s); err == nil {
			t.Error("a route that the kernel refuses is no error: they would not be tried again")
		}
		for _, want := range []string{
			"Node node-2: spec.podCIDRs: there is no route to 10.1.0.128/25: it overlaps 10.1.0.0/24, the podCIDR of another node: if that is meant, make the route by hand (AddressTaken)",
			"Node node-2: status.addresses: 192.0.2.1 is not used: it is an address of the edge itself, which cannot be a node of the cluster that it serves (AddressTaken)",
			"Node node-3: spec.podCIDRs: there is no route to 10.3.0.0/24: the kernel refuses one via 0.0.0.0 (no such device): see status.addresses (InvalidField)",
			"Node node-4: spec.podCIDRs: there is no route to 172.16.6.0/24: it takes in 172.16.6.6, which is no pod but a node, an API server or a gateway: if that is meant, make the route by hand (AddressTaken)",
			"Service default/bad: spec.loadBalancerIP: 172.16.6.6 is not served: it is the address of a node or an API server: choose another (AddressTaken)",
			"Service default/bad: spec.loadBalancerIP: 192.0.2.1 is not served: it is an address of the edge itself: choose another (AddressTaken)",
			"Service default/bad: spec.loadBalancerIP: 192.0.2.254 is not served: it is the gateway of one of the edge's routes: choose another (AddressTaken)",
			"Service default/many: spec.sessionAffinity: port 80 of TCP, IPv4: clients keep to endpoints by a hash, without timeout: it has more than 64 endpoints (Unsupported)",
		} {
			if !slices.ContainsFunc(k.Problems(), func(p model.Problem) bool { return p.String() == want }) {
				t.Errorf("missing: %s", want)
			}
		}
		if got := k.Problems(); len(got) != 8 || !slices.IsSortedFunc(got, model.Problem.Compare) {
			t.Errorf("%d Problems, want 8 in order: %v", len(got), got)
		}
		if here, err := k.look(); err != nil || fmt.Sprint(here.vips) != "[192.0.2.200 192.0.2.201]" {
			t.Errorf("VIPs %v, %v; want those that are free", here.vips, err)
		}
		if err := k.Reconcile(context.Background(), web("")); err != nil || len(k.Problems()) != 0 {
			t.Errorf("when all is well: %v, %v", err, k.Problems())
		}
	})
}

// TestVIPFails holds that each VIP which cannot be put on the link is a Problem of its Service. The kernel takes
// any address, so here the link goes away.
func TestVIPFails(t *testing.T) {
	n := newNetwork(t)
	startKernel(t, n, Options{})(web(""))
	netlab.In(t, n.Edge, func() {
		k, err := NewKernel(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		here, err := k.look()
		if err != nil {
			t.Fatal(err)
		}
		netlab.Run(t, "ip", "link", "del", DefaultLink)
		s := scenario.Snapshot(scenario.Service("a", "198.51.100.11", "TCP 80 0:"), scenario.Service("b", "198.51.100.12", "TCP 80 0:"))
		err = k.assign(context.Background(), here, answered([]*plan.Plan{plan.New(s, plan.IPv4, plan.Options{})}), s)
		k.publishProblems()
		got := fmt.Sprint(k.Problems())
		for _, vip := range []string{"198.51.100.11", "198.51.100.12"} {
			if !strings.Contains(got, vip+" is not served") {
				t.Errorf("%s: Problems %s", vip, got)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "add 198.51.100.11 to link sally0, and 1 more") {
			t.Errorf("error %v", err)
		}
	})
}
