package rules

import (
	"strings"
	"testing"
	"time"

	"sallyport/rules/netlab"
)

// TestWatch holds that what takes our routes or addresses away is noticed, and that Reconcile then brings them back.
func TestWatch(t *testing.T) {
	n := newNetwork(t)
	w := watch(t, n, Options{})
	reconcile := func() { w.settle(t, n, webOfBoth()) }
	netlab.In(t, n.Edge, func() { netlab.Run(t, "sysctl", "-qw", "net.ipv6.conf.back.keep_addr_on_down=1") }) // as IPv4 does
	reconcile()
	for _, tt := range []struct{ why, command string }{
		{"route removed", "ip route del 10.1.0.0/24"},
		{"VIP removed", "ip route del table local 198.51.100.10"},
		{"link of the nodes' network flaps", "ip link set back down; ip link set back up"},
		{"link of VIPs removed", "ip link del sally0"},
		{"link of VIPs flaps", "ip link set sally0 down; ip link set sally0 up"},
		{"forwarding turned off", "sysctl -qw net.ipv4.ip_forward=0"},
		{"IPv6 route removed", "ip route del fd00:1::/64"},
		{"IPv6 VIP removed", "ip -6 route del table local 2001:db8:2::10"},
		{"IPv6 forwarding turned off", "sysctl -qw net.ipv6.conf.all.forwarding=0"},
	} {
		for command := range strings.SplitSeq(tt.command, "; ") {
			netlab.In(t, n.Edge, func() { netlab.Run(t, strings.Fields(command)...) })
			select {
			case <-w.changes:
			case <-time.After(5 * time.Second):
				t.Fatalf("%s: not noticed", command)
			}
		}
		reconcile()
		netlab.In(t, n.Edge, func() {
			if routes := netlab.Run(t, "ip", "route"); !strings.Contains(routes, "10.1.0.0/24 via "+nodeIP) {
				t.Errorf("%s: route is not back:\n%s", tt.why, routes)
			}
			if routes := netlab.Run(t, "ip", "-6", "route"); !strings.Contains(routes, "fd00:1::/64 via "+netlab.NodeIPv6) {
				t.Errorf("%s: IPv6 route is not back:\n%s", tt.why, routes)
			}
			if on := netlab.Run(t, "sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"); on != "1\n1\n" {
				t.Errorf("%s: forwarding is %s", tt.why, on)
			}
			if vips := localVIPs(t); vips != "198.51.100.10 2001:db8:2::10" {
				t.Errorf("%s: VIPs are %s", tt.why, vips)
			}
		})
	}
}
