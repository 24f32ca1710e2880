package rules

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/rules/netlab"
	"sallyport/rules/scenario"
)

// TestForwardsForNoOneElse holds that a client cannot use the edge as a router to nodes and pods, unless the edge was a
// router before, and then not along the routes to pods that are new; and that Cleanup leaves forwarding as it was.
func TestForwardsForNoOneElse(t *testing.T) {
	const pod, host, foreignPod = "10.1.0.2:9376", nodeIP + ":10250", "10.1.0.3:9376"
	for _, tt := range []struct {
		why, forwarding string
		foreignRoute    bool
		reached         []string
	}{
		{"off before", "0", false, nil},
		{"on before", "1", false, []string{host}},
		{"on before, with a route to a podCIDR of someone else's", "1", true, []string{host, pod, foreignPod}},
	} {
		everyDataplane(t, func(t *testing.T, o Options) {
			n := newNetwork(t)
			for _, addr := range []string{pod, foreignPod, host} {
				netlab.Serve(t, n.Node, addr, "server")
			}
			netlab.In(t, n.Client, func() { netlab.Run(t, "ip", "route", "add", "10.0.0.0/8", "via", edgeIP) })
			netlab.In(t, n.Node, func() { netlab.Run(t, "ip", "route", "add", "192.0.2.0/24", "via", "10.0.0.1") })
			netlab.In(t, n.Edge, func() {
				netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward="+tt.forwarding)
				if tt.foreignRoute {
					netlab.Run(t, "ip", "route", "add", "10.1.0.0/24", "via", nodeIP)
				}
			})
			s := web(" 10.1.0.2:9376")
			s.Nodes = append(s.Nodes[:0], scenario.Node("a", nodeIP, "10.1.0.0/24"))
			for range 2 { // the second is a restart, which finds forwarding on in any case
				startKernel(t, n, o)(s)
				if got := netlab.Ask(t, n.Client, "tcp", edgeIP+":30001"); !strings.HasPrefix(got, "server") {
					t.Errorf("%s: the NodePort gives %s", tt.why, got)
				}
				for _, addr := range []string{pod, foreignPod, host} {
					if got, want := passes(t, n, addr), slices.Contains(tt.reached, addr); got != want {
						t.Errorf("%s: the client reaches %s: %v, want %v", tt.why, addr, got, want)
					}
				}
			}
			netlab.In(t, n.Edge, func() {
				if _, err := Cleanup(context.Background(), Options{}); err != nil {
					t.Fatal(err)
				}
				if got := strings.TrimSpace(netlab.Run(t, "sysctl", "-n", "net.ipv4.ip_forward")); got != tt.forwarding {
					t.Errorf("%s: after Cleanup ip_forward is %s", tt.why, got)
				}
			})
		})
	}
}

// passes says whether the client connects to an address behind the edge. What is dropped is silent, so it waits little.
func passes(t *testing.T, n *netlab.Network, addr string) bool {
	t.Helper()
	var err error
	netlab.In(t, n.Client, func() {
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp", addr, time.Second/4); err == nil {
			conn.Close()
		}
	})
	return err == nil
}

// TestHostStaysHost holds that turning IPv6 forwarding on keeps the default route that a link has from router advertisements, and has
// it go on to listen to them; that it is not turned on before a Service needs it; and that what was set otherwise stays so.
func TestHostStaysHost(t *testing.T) {
	n := newNetwork(t)
	settings := func() string {
		return strings.ReplaceAll(netlab.Run(t, "sysctl", "-n", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.default.forwarding", "net.ipv6.conf.front.forwarding",
			"net.ipv6.conf.front.accept_ra", "net.ipv6.conf.back.accept_ra"), "\n", " ")
	}
	netlab.Serve(t, n.Node, "[fd00:1::2]:9376", "pod")
	reconcile := startKernel(t, n, Options{})
	netlab.In(t, n.Edge, func() {
		netlab.Run(t, "sysctl", "-qw", "net.ipv6.conf.back.accept_ra=0")
		netlab.Run(t, "ip", "-6", "route", "add", "default", "via", netlab.ClientIPv6, "dev", "front", "proto", "ra", "expires", "1000")
		reconcile(web(" 10.1.0.2:9376"))
		if got, want := settings(), "0 0 0 1 0 "; got != want {
			t.Errorf("no Service needs it: got %s, want %s", got, want)
		}
		reconcile(dual(scenario.Service("web", "2001:db8:2::10", "TCP 80 0: [fd00:1::2]:9376")))
		if got, want := settings(), "1 0 0 1 0 "; got != want {
			t.Errorf("a Service needs it: got %s, want %s", got, want)
		}
		if routes := netlab.Run(t, "ip", "-6", "route", "show", "default"); !strings.Contains(routes, "proto ra") {
			t.Errorf("the default route is gone: %s", routes)
		}
	})
	if got := netlab.Ask(t, n.Client, "tcp", "[2001:db8:2::10]:80"); got != "pod fd00::1" {
		t.Errorf("VIP: %s", got)
	}
	netlab.In(t, n.Edge, func() {
		if _, err := Cleanup(context.Background(), Options{}); err != nil {
			t.Fatal(err)
		}
		if got, want := settings(), "0 0 0 1 0 "; got != want {
			t.Errorf("after Cleanup: got %s, want %s", got, want)
		}
	})
}
