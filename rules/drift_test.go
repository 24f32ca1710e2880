package rules

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netns"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// A watched is a Kernel whose Watch has it reconciled, as an edge does.
type watched struct {
	*Kernel
	log     lockedBuffer
	changes chan struct{}
}

// webOfBoth has a VIP of each family.
func webOfBoth() *model.Snapshot {
	return dual(scenario.Service("web", "198.51.100.10 2001:db8:2::10", "TCP 80 30001: 10.1.0.2:9376 [fd00:1::2]:9376"))
}

func (w *watched) tables() *xtables { return w.rules.(*xtables) }

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// watch makes a Kernel in the edge's namespace and follows it there until the test ends. Reconciling is up to the caller.
func watch(t *testing.T, n *netlab.Network, o Options) *watched {
	t.Helper()
	w := &watched{changes: make(chan struct{}, 1)}
	o.Log = slog.New(slog.NewTextHandler(&w.log, nil))
	var err error
	netlab.In(t, n.Edge, func() {
		w.Kernel, err = NewKernel(o)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	if x, ok := w.rules.(*xtables); ok {
		x.legacyInterval = 20 * time.Millisecond
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(n.Edge); err != nil {
			ended <- err
			return
		}
		ended <- w.Watch(ctx, func() {
			select {
			case w.changes <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for { // it listens from some moment on
		netlab.In(t, n.Edge, func() { netlab.Run(t, "ip", "addr", "replace", "10.77.0.1/32", "dev", "lo") })
		netlab.In(t, n.Edge, func() { netlab.Run(t, "ip", "addr", "del", "10.77.0.1/32", "dev", "lo") })
		select {
		case <-w.changes:
			return w
		default:
		}
	}
}

// settle reconciles until nothing calls for it any more.
func (w *watched) settle(t *testing.T, n *netlab.Network, s *model.Snapshot) {
	t.Helper()
	for {
		netlab.In(t, n.Edge, func() {
			if err := w.Reconcile(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		})
		select {
		case <-w.changes:
		case <-time.After(repairPause + 100*time.Millisecond): // several looks of legacy
			return
		}
	}
}

// TestDrift holds that whatever others do to our rules is noticed and made good, and said.
func TestDrift(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		n := newNetwork(t)
		netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
		netlab.Serve(t, n.Edge, "0.0.0.0:22", "sshd")
		w := watch(t, n, Options{Backend: b})
		w.settle(t, n, webOfBoth())
		for _, tt := range []struct {
			name, command string // IPT stands for the command iptables
			table         string
			kind          driftKind
		}{
			{"table flushed", "IPT -t nat -F", "nat", driftHook},
			{"filter table flushed", "IPT -F", "filter", driftHook},
			{"built-in chain flushed", "IPT -F INPUT", "filter", driftHook},
			{"hook removed", "IPT -t nat -D PREROUTING -j SALLY-SERVICES", "nat", driftHook},
			{"chain of ours flushed", "IPT -t nat -F SALLY-POSTROUTING", "nat", driftRules},
			{"the guard flushed", "IPT -F SALLY-GUARD", "filter", driftRules},
			{"rule of ours removed", "IPT -D SALLY-GUARD 1", "filter", driftRules},
			{"rule added to a chain of ours", "IPT -I SALLY-INPUT 1 -j ACCEPT", "filter", driftRules},
			{"chain removed", "printf '*filter\n:SALLY-INPUT -\n-D INPUT -j SALLY-INPUT\n-X SALLY-INPUT\nCOMMIT\n' | IPT-restore --noflush", "filter", driftChain},
			{"restored by another program", "printf '*filter\nCOMMIT\n*nat\nCOMMIT\n' | IPT-restore", "nat", driftHook},
			{"all tables removed", "nft flush ruleset", "filter", driftHook},
			{"IPv6 table flushed", "IPT6 -t nat -F", "nat", driftHook},
			{"IPv6 guard flushed", "IPT6 -F SALLY-GUARD", "filter", driftRules},
		} {
			if b == BackendNFT || !strings.HasPrefix(tt.command, "nft") {
				t.Run(tt.name, func(t *testing.T) { w.drift(t, n, tt.command, tt.table, tt.kind) })
			}
		}
	})
}

// drift runs a command that does harm, and reconciles when it is noticed.
func (w *watched) drift(t *testing.T, n *netlab.Network, command, table string, kind driftKind) {
	b := w.tables().backend()
	family := plan.IPv4
	if strings.HasPrefix(command, "IPT6") {
		family = plan.IPv6
	}
	counted := func() float64 {
		return testutil.ToFloat64(w.metrics.drift.WithLabelValues(family.String(), table, kind.String()))
	}
	applied := func() float64 { return testutil.ToFloat64(w.metrics.applies.WithLabelValues("success")) }
	findings, applies, log := counted(), applied(), len(w.log.String())
	var want, got string
	netlab.In(t, n.Edge, func() {
		want = rulesOf(t, b)
		netlab.Run(t, "sh", "-c", strings.NewReplacer("IPT6", "ip6tables-"+string(b), "IPT", "iptables-"+string(b)).Replace(command))
	})
	for got != want || counted() == findings { // a program may do it in several steps, the last of which is told when all is well again
		select {
		case <-w.changes:
		case <-time.After(5 * time.Second):
			t.Fatalf("not noticed, or not made good: sallyport_rules_drift_total{table=%q,kind=\"%v\"} has grown by %v\n%s\nwant\n%s",
				table, kind, counted()-findings, got, want)
		}
		netlab.In(t, n.Edge, func() {
			if err := w.Reconcile(context.Background(), webOfBoth()); err != nil {
				t.Fatal(err)
			}
			got = rulesOf(t, b)
		})
	}
	if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:22"); got != "refused" {
		t.Errorf("VIP's port 22: %s", got)
	}
	if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:80"); got != "pod 10.0.0.1" {
		t.Errorf("VIP's port 80: %s", got)
	}
	if n := applied() - applies; n > 2 {
		t.Errorf("%v applies to make it good", n)
	}
	if !strings.Contains(w.log.String()[log:], "another program changed rules that are Sallyport's") {
		t.Errorf("nothing in the log: %s", w.log.String()[log:])
	}
}

// TestDriftNFTables is TestDrift for the tables of nftables.
func TestDriftNFTables(t *testing.T) {
	n := newNetwork(t)
	for _, ip := range netlab.Pods {
		netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), "pod")
	}
	w := watch(t, n, Options{Dataplane: DataplaneNFTables})
	w.settle(t, n, webOfBoth())
	for _, command := range []string{"flush ruleset", "delete table ip6 sallyport", "flush chain ip sallyport dispatch", "flush map ip6 sallyport services"} {
		netlab.In(t, n.Edge, func() { netlab.Run(t, append([]string{"nft"}, strings.Fields(command)...)...) })
		select {
		case <-w.changes:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: not noticed", command)
		}
		w.settle(t, n, webOfBoth())
		for _, to := range []string{"198.51.100.10:80", "[2001:db8:2::10]:80"} {
			if got := netlab.Ask(t, n.Client, "tcp", to); !strings.HasPrefix(got, "pod") {
				t.Errorf("%s: %s gives %s", command, to, got)
			}
		}
	}
}

// TestNoDrift holds that neither our own changes, whatever their size, nor those of others to rules of their own count as drift.
func TestNoDrift(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		n := newNetwork(t)
		w := watch(t, n, Options{Backend: b})
		for _, to := range []string{"", " 10.1.0.2:9376", scenario.Destinations(2000), scenario.Destinations(3), " 10.1.0.2:9376"} {
			w.settle(t, n, web(to))
		}
		netlab.In(t, n.Edge, func() {
			ipt := "iptables-" + string(b)
			netlab.Run(t, ipt, "-N", "OTHER")
			for range 5 {
				netlab.Run(t, ipt, "-I", "INPUT", "-p", "tcp", "--dport", "7", "-j", "OTHER")
				netlab.Run(t, ipt, "-A", "OTHER", "-j", "DROP")
				netlab.Run(t, ipt, "-F", "OTHER")
				netlab.Run(t, ipt, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "RETURN")
				netlab.Run(t, "nft", "add table ip other; add chain ip other SALLY-X; add rule ip other SALLY-X counter; delete table ip other")
			}
		})
		w.settle(t, n, web(" 10.1.0.2:9376"))
		if strings.Contains(w.log.String(), "another program") {
			t.Errorf("taken for drift: %s", &w.log)
		}
		if got := testutil.ToFloat64(w.metrics.applies.WithLabelValues("success")); got != 5 {
			t.Errorf("%v applies, want one for each of 5 snapshots", got)
		}
	})
}

// TestNotificationsLost holds that what could not be read is taken for drift, once.
func TestNotificationsLost(t *testing.T) {
	n := newNetwork(t)
	w := watch(t, n, Options{Backend: BackendNFT})
	s := webOfBoth()
	w.settle(t, n, s)
	w.tables().collect(nil, nil)
	w.settle(t, n, s)
	if got := testutil.ToFloat64(w.metrics.drift.WithLabelValues("IPv6", "", driftUnknown.String())); got == 0 {
		t.Error("lost notifications are not counted as drift")
	}
	if got := testutil.ToFloat64(w.metrics.applies.WithLabelValues("success")); got != 2 {
		t.Errorf("%v applies, want the first and one more", got)
	}
}
