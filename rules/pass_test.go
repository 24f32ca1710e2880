package rules

import (
	"net"
	"strings"
	"testing"
	"time"

	"sallyport/rules/iptables"
	"sallyport/rules/netlab"
	"sallyport/rules/plan"
)

// passLab is a network in which others drop what is forwarded, in a backend of iptables.
func passLab(t *testing.T, b Backend) *netlab.Network {
	t.Helper()
	if !iptables.IsHook(passHook.Line()) {
		t.Fatal("Cleanup does not know the hook")
	}
	n := newNetwork(t)
	for _, ip := range netlab.Pods {
		netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), "pod")
	}
	netlab.In(t, n.Edge, func() {
		for _, f := range plan.Families {
			command := commandOf(f) + "-" + string(b)
			netlab.Run(t, command, "-P", "FORWARD", "DROP")
			netlab.Run(t, command, "-A", "FORWARD", "-j", "REJECT")
		}
	})
	return n
}

// passesBoth holds that the Service of webOfBoth is reached.
func passesBoth(t *testing.T, n *netlab.Network, when string) {
	t.Helper()
	for _, to := range []string{"198.51.100.10:80", "[2001:db8:2::10]:80"} {
		if got := netlab.Ask(t, n.Client, "tcp", to); !strings.HasPrefix(got, "pod") {
			t.Errorf("%s: %s gives %s", when, to, got)
		}
	}
}

// TestPass holds that connections of the dataplane nftables pass a FORWARD of iptables that drops, that a restart leaves that alone,
// and that the dataplane iptables in the other backend removes it.
func TestPass(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		n := passLab(t, b)
		startKernel(t, n, Options{Dataplane: DataplaneNFTables})(webOfBoth())
		passesBoth(t, n, "at first")
		var before string
		netlab.In(t, n.Edge, func() { before = rulesOf(t, b) })
		startKernel(t, n, Options{Dataplane: DataplaneNFTables})(webOfBoth())
		passesBoth(t, n, "after a restart")
		netlab.In(t, n.Edge, func() {
			if got := rulesOf(t, b); got != before {
				t.Errorf("a restart changes\n%s\nto\n%s", before, got)
			}
		})
		other := map[Backend]Backend{BackendNFT: BackendLegacy, BackendLegacy: BackendNFT}[b]
		startKernel(t, n, Options{Backend: other})(webOfBoth())
		netlab.In(t, n.Edge, func() {
			if got := rulesOf(t, b); strings.Contains(got, iptables.Prefix) {
				t.Errorf("with %s there is left:\n%s", other, got)
			}
		})
	})
}

// TestPassOnlyWhereNeeded holds that iptables stays untouched where FORWARD drops nothing.
func TestPassOnlyWhereNeeded(t *testing.T) {
	n := newNetwork(t)
	startKernel(t, n, Options{Dataplane: DataplaneNFTables})(webOfBoth())
	netlab.In(t, n.Edge, func() {
		if got := netlab.Run(t, "nft", "list", "tables"); got != "table ip sallyport\ntable ip6 sallyport\n" {
			t.Errorf("got %s", got)
		}
	})
}

// TestPassIsWatched has another firewall start, and then flush our jump: both is noticed.
func TestPassIsWatched(t *testing.T) {
	n := newNetwork(t)
	for _, ip := range netlab.Pods {
		netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), "pod")
	}
	w := watch(t, n, Options{Dataplane: DataplaneNFTables})
	w.settle(t, n, webOfBoth())
	for _, command := range []string{"-P FORWARD DROP", "-F FORWARD", "-F SALLY-FORWARD"} {
		netlab.In(t, n.Edge, func() { netlab.Run(t, append([]string{"iptables-nft"}, strings.Fields(command)...)...) })
		select {
		case <-w.changes:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: not noticed", command)
		}
		w.settle(t, n, webOfBoth())
		passesBoth(t, n, command)
	}
	if strings.Contains(w.log.String(), "changed by another program") {
		t.Errorf("what is others' is called ours: %s", &w.log)
	}
}
