package reach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

var nodeA = model.ObjectRef{Kind: "Node", Name: "node-a"}

// snapshot has one TCP Service with an endpoint on node-a.
func snapshot() *model.Snapshot { return snapshotOf(model.TCP) }

func snapshotOf(p model.Protocol) *model.Snapshot {
	return &model.Snapshot{
		Nodes: []model.Node{{Ref: nodeA}},
		Services: []model.Service{{Ports: []model.ServicePort{{Protocol: p, Endpoints: []model.Endpoint{
			{Addr: netip.MustParseAddrPort("10.1.0.2:80"), Node: "node-a", Ready: true},
		}}}}},
	}
}

// rig is a Prober whose network answers with whatever the test stores.
type rig struct {
	*Prober
	answer  atomic.Pointer[error]
	changes atomic.Int32
}

func newRig(t *testing.T) *rig {
	r := &rig{}
	r.say(nil)
	r.Prober = New(Options{
		Dial:    func(context.Context, netip.AddrPort) error { return *r.answer.Load() },
		Changed: func() { r.changes.Add(1) },
		Log:     slog.New(slog.DiscardHandler),
		Metrics: prometheus.NewRegistry(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { _ = r.Run(ctx) }() // ends with the test; Run always returns nil
	return r
}

func (r *rig) say(err error) { r.answer.Store(&err) }

func (r *rig) want(t *testing.T, pods bool, changes int32) {
	t.Helper()
	synctest.Wait()
	if got := r.PodsReachable(nodeA); got != pods || r.changes.Load() != changes {
		t.Errorf("reachable %v after %d changes, want %v after %d", got, r.changes.Load(), pods, changes)
	}
}

func TestAProbeThatAnswers(t *testing.T) {
	for _, tt := range []struct {
		name     string
		protocol model.Protocol
		answer   error
		pods     bool
	}{
		{"connected", model.TCP, nil, true},
		{"refused although it is ready: by a firewall", model.TCP, fmt.Errorf("dial: %w", syscall.ECONNREFUSED), false},
		{"refused by a pod that serves UDP", model.UDP, fmt.Errorf("dial: %w", syscall.ECONNREFUSED), true},
		{"no route", model.TCP, fmt.Errorf("dial: %w", syscall.EHOSTUNREACH), false},
		{"silence", model.UDP, context.DeadlineExceeded, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.say(tt.answer)
				r.want(t, false, 0)
				_ = r.Reconcile(t.Context(), snapshotOf(tt.protocol))
				r.want(t, tt.pods, 1)
			})
		})
	}
}

func TestOneFailureProvesNothingThreeDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		_ = r.Reconcile(t.Context(), snapshot())
		r.want(t, true, 1)
		r.say(errors.New("silence"))
		time.Sleep(2*10*time.Second + time.Second) // two probes; virtual time
		r.want(t, true, 1)
		time.Sleep(10 * time.Second)
		r.want(t, false, 2)
		r.say(nil)
		time.Sleep(10 * time.Second)
		r.want(t, true, 3)
	})
}

func TestAnAnswerSurvivesSnapshotsAndGoesWithItsNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		_ = r.Reconcile(t.Context(), snapshot())
		r.want(t, true, 1)
		bare := &model.Snapshot{Nodes: snapshot().Nodes} // its pods are gone, the node is not
		_ = r.Reconcile(t.Context(), bare)
		r.want(t, true, 1)
		_ = r.Reconcile(t.Context(), &model.Snapshot{})
		r.want(t, false, 1)
	})
}

// TestFamiliesAreApart: pods may be routed in one family alone.
func TestFamiliesAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Options{IPv6: true, Changed: func() {}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
			Dial: func(_ context.Context, addr netip.AddrPort) error {
				if addr.Addr().Is6() {
					return nil
				}
				return syscall.EHOSTUNREACH
			}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = p.Run(ctx) }() // ends with the test; Run always returns nil
		s := snapshot()
		s.Services[0].Ports[0].Endpoints = append(s.Services[0].Ports[0].Endpoints, model.Endpoint{Addr: netip.MustParseAddrPort("[fd00::2]:80"), Node: "node-a", Ready: true})
		_ = p.Reconcile(ctx, s)
		synctest.Wait()
		if p.PodsReachable(nodeA) || !p.IPv6PodsReachable(nodeA) {
			t.Errorf("reached by IPv4: %v, by IPv6: %v; want the latter alone", p.PodsReachable(nodeA), p.IPv6PodsReachable(nodeA))
		}
	})
}

// TestNobodySpeaksForANode: an EndpointSlice may give a node an address of anywhere, which answers, and no Service may lose its
// traffic by that.
func TestNobodySpeaksForANode(t *testing.T) {
	outside, pod := netip.MustParseAddrPort("203.0.113.1:443"), netip.MustParseAddrPort("10.1.0.2:80")
	of := func(endpoints ...netip.AddrPort) *model.Snapshot {
		s := snapshot()
		s.Nodes[0].PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
		port := &s.Services[0].Ports[0]
		port.Endpoints = nil
		for _, e := range endpoints {
			port.Endpoints = append(port.Endpoints, model.Endpoint{Addr: e, Node: nodeA.Name, Ready: true})
		}
		return s
	}
	for _, tt := range []struct {
		name    string
		stories []*model.Snapshot
		changes int32
	}{
		{"beside its pod", []*model.Snapshot{of(outside, pod)}, 1},
		{"behind its pod", []*model.Snapshot{of(pod, outside)}, 1},
		{"before it had a pod", []*model.Snapshot{of(outside), of(outside, pod)}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &rig{}
				r.Prober = New(Options{Changed: func() { r.changes.Add(1) }, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
					Dial: func(_ context.Context, addr netip.AddrPort) error {
						if addr == outside {
							return nil
						}
						return syscall.EHOSTUNREACH
					}})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { _ = r.Run(ctx) }() // ends with the test; Run always returns nil
				for _, s := range tt.stories {
					_ = r.Reconcile(ctx, s)
					synctest.Wait()
				}
				r.want(t, false, tt.changes)
			})
		})
	}
}

func TestPodsToProbe(t *testing.T) {
	endpoint := func(addr, node string, ready bool) model.Endpoint {
		return model.Endpoint{Addr: netip.MustParseAddrPort(addr), Node: node, Ready: ready}
	}
	s := &model.Snapshot{
		Nodes: []model.Node{{Ref: nodeA, InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}},
		Services: []model.Service{{Ports: []model.ServicePort{{Protocol: model.TCP, Endpoints: []model.Endpoint{
			endpoint("192.0.2.1:6443", "node-a", true), // hostNetwork
			endpoint("10.1.0.1:80", "node-a", false),   // not ready
			endpoint("10.1.0.2:80", "node-a", true),
			endpoint("10.1.0.2:443", "node-a", true), // the same pod
			endpoint("10.9.9.9:80", "", true),        // on no node
			endpoint("[fd00::2]:80", "node-a", true),
			endpoint("10.1.0.3:80", "node-a", true),
			endpoint("10.1.0.4:80", "node-a", true),
			endpoint("10.1.0.5:80", "node-a", true), // one too many
		}}, {Protocol: model.UDP, Endpoints: []model.Endpoint{endpoint("10.1.0.2:53", "node-a", true)}}}}},
	}
	for ipv6, want := range map[bool]string{false: "[10.1.0.2:80 10.1.0.3:80 10.1.0.4:80] [10.1.0.2:53] []",
		true: "[10.1.0.2:80 10.1.0.3:80 10.1.0.4:80] [10.1.0.2:53] [[fd00::2]:80]"} {
		found := (&Prober{o: Options{IPv6: ipv6}}).probesByTarget(s)
		p := found[target{nodeA, false}]
		if got := fmt.Sprint(p.tcp, p.udp, found[target{nodeA, true}].tcp); got != want {
			t.Errorf("IPv6 %v: got %s, want %s", ipv6, got, want)
		}
	}
}
