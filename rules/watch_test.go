package rules

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// TestWatch holds that what takes our routes or addresses away is noticed, and that Reconcile then brings them back.
func TestWatch(t *testing.T) {
	n := newNetwork(t)
	reconcile := startKernel(t, n, Options{})
	reconcile(web(" 10.1.0.2:9376"))
	ctx, stop := context.WithCancel(context.Background())
	changes, ended := make(chan struct{}, 100), make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(n.edge); err != nil {
			ended <- err
			return
		}
		ended <- Watch(ctx, func() { changes <- struct{}{} })
	}()
	change := func(command ...string) {
		t.Helper()
		in(t, n.edge, func() { sh(t, command...) })
		select {
		case <-changes:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: not noticed", strings.Join(command, " "))
		}
	}
	for { // Watch listens from some moment on
		in(t, n.edge, func() { sh(t, "ip", "addr", "replace", "10.77.0.1/32", "dev", "lo") })
		in(t, n.edge, func() { sh(t, "ip", "addr", "del", "10.77.0.1/32", "dev", "lo") })
		if len(changes) > 0 {
			break
		}
	}
	for _, tt := range []struct{ why, command string }{
		{"route removed", "ip route del 10.1.0.0/24"},
		{"VIP removed", "ip addr del 198.51.100.10/32 dev sally0"},
		{"link of the nodes' network flaps", "ip link set back down; ip link set back up"},
		{"link of VIPs removed", "ip link del sally0"},
	} {
		for command := range strings.SplitSeq(tt.command, "; ") {
			for len(changes) > 0 {
				<-changes
			}
			change(strings.Fields(command)...)
		}
		reconcile(web(" 10.1.0.2:9376"))
		in(t, n.edge, func() {
			if routes := sh(t, "ip", "route"); !strings.Contains(routes, "10.1.0.0/24 via "+nodeIP) {
				t.Errorf("%s: route is not back:\n%s", tt.why, routes)
			}
			if addrs := sh(t, "ip", "addr", "show", "sally0"); !strings.Contains(addrs, "198.51.100.10/32") {
				t.Errorf("%s: VIP is not back:\n%s", tt.why, addrs)
			}
		})
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
