package stream

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"sallyport/gateway/balance"
	"sallyport/watcher/model"
)

// lineFrom returns the first line that a client at an address of its own gets.
func lineFrom(t *testing.T, from netip.Addr, addr string) string {
	t.Helper()
	c, err := dialFrom(from, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var line string
	if _, err := fmt.Fscanln(c, &line); err != nil {
		t.Fatal(err)
	}
	return line
}

func TestAffinityIsByClientAlone(t *testing.T) {
	backends := []netip.AddrPort{tcpEcho(t, "a"), tcpEcho(t, "b"), tcpEcho(t, "c")}
	svc := service("web", model.TCP, 30001, backends...)
	svc.VIPs, svc.Affinity = []netip.Addr{loopback()}, &model.Affinity{Timeout: time.Hour}
	one, other := newEdge(t, Options{HashSeed: 7}), newEdge(t, Options{HashSeed: 7})
	one.mustReconcile(t, svc)
	at := []string{one.at(30001), one.at(30001), netip.AddrPortFrom(svc.VIPs[0], servicePort).String(), other.at(30001)}
	svc.VIPs = nil // an address is one edge's
	other.mustReconcile(t, svc)
	seen := map[string]bool{}
	for range 20 {
		client := loopback()
		want := lineFrom(t, client, at[0])
		seen[want] = true
		for _, addr := range at[1:] {
			if got := lineFrom(t, client, addr); got != want {
				t.Errorf("client %v is sent to %s and, at %s, to %s", client, want, addr, got)
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("20 clients are sent to %v, want all three", seen)
	}
}

func TestAffinityOfUDP(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("dns", model.UDP, 30053, udpEcho(t, "a"), udpEcho(t, "b"), udpEcho(t, "c"))
	svc.Affinity = &model.Affinity{Timeout: time.Hour}
	e.mustReconcile(t, svc)
	want := ask(t, udpDial(t, e.at(30053)), "?")
	for range 5 {
		if got := ask(t, udpDial(t, e.at(30053)), "?"); got != want {
			t.Errorf("another socket of the client gets %q, want %q", got, want)
		}
	}
}

// An endpoint that comes takes clients over by hash, unless affinity is exact: then each keeps what it has, until its time is up.
func TestAffinityWhileEndpointsChange(t *testing.T) {
	const timeout = time.Minute
	p := New(Options{})
	t.Cleanup(p.Close)
	c := &clock{now: time.Hour}
	p.states.uptime = c.uptime
	clients := make([]netip.Addr, 200)
	for i := range clients {
		clients[i] = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	}
	few, more := endpointsOf("10.1.0.1", "10.1.0.2"), endpointsOf("10.1.0.1", "10.1.0.2", "10.1.0.3")
	for _, tt := range []struct {
		name         string
		exact        bool
		destinations []model.Destination
		later        time.Duration
		moves        bool
	}{
		{"hash, one comes", false, more, 0, true},
		{"exact, one comes", true, more, timeout - 1, false},
		{"exact, its time is up", true, more, timeout, true},
		{"exact, one goes", true, few[:1], 0, true},
		{"exact, nothing changes", true, few, timeout, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svc := service(tt.name, model.TCP, 30001)
			svc.Affinity = &model.Affinity{Timeout: timeout, Exact: tt.exact}
			before := choicesOf(t, p, svc, few, clients)
			c.now += tt.later
			after := choicesOf(t, p, svc, tt.destinations, clients)
			moved := 0
			for i, was := range before {
				if was == after[i] {
					continue
				}
				moved++
				if is := after[i].Addr(); len(tt.destinations) > len(few) && is != more[2].Addr {
					t.Errorf("client %d moved from %v to %v, which was there before", i, was.Addr(), is)
				}
			}
			if tt.moves != (moved > 0) || moved > 2*len(clients)/3 {
				t.Errorf("%d of %d clients moved, want some %t", moved, len(clients), tt.moves)
			}
		})
	}
}

func endpointsOf(ips ...string) []model.Destination {
	var out []model.Destination
	for _, ip := range ips {
		out = append(out, model.Destination{Addr: netip.AddrPortFrom(netip.MustParseAddr(ip), 80), Reach: model.ReachPods})
	}
	return out
}

// choicesOf returns what each client is sent to, without sending anything.
func choicesOf(t *testing.T, p *Proxy, svc model.Service, to []model.Destination, clients []netip.Addr) (out []*balance.Endpoint) {
	t.Helper()
	target := p.newTarget(want{service: svc.Ref, state: p.states.port(&svc, &svc.Ports[0]), destinations: to, affinity: svc.Affinity})
	for _, c := range clients {
		e, err := target.reach(c, func(*balance.Endpoint, int) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// A client stays where it found someone, not where its hash leads: the endpoint that refused it may be back by now.
func TestExactAffinityIsToWhoTookTheConnection(t *testing.T) {
	p := New(Options{})
	t.Cleanup(p.Close)
	svc := service("web", model.TCP, 30001)
	svc.Affinity = &model.Affinity{Timeout: time.Hour, Exact: true}
	to := endpointsOf("10.1.0.1", "10.1.0.2", "10.1.0.3")
	target := p.newTarget(want{state: p.states.port(&svc, &svc.Ports[0]), destinations: to, affinity: svc.Affinity})
	var refused *balance.Endpoint
	took, err := target.reach(alice, func(e *balance.Endpoint, _ int) error {
		if refused == nil {
			refused = e
			return errors.New("connection refused")
		}
		return nil
	})
	if err != nil || took == refused {
		t.Fatalf("reach = %v, %v, after %v refused", took, err, refused)
	}
	for range 3 {
		if again, err := target.reach(alice, func(*balance.Endpoint, int) error { return nil }); err != nil || again != took {
			t.Errorf("again = %v, %v, want %v", again, err, took)
		}
	}
}

func TestExactAffinityIsBoundedAndForgets(t *testing.T) {
	p := New(Options{MaxClients: 4})
	t.Cleanup(p.Close)
	c := &clock{now: time.Hour}
	p.states.uptime = c.uptime
	svc := service("web", model.TCP, 30001)
	svc.Affinity = &model.Affinity{Timeout: time.Minute, Exact: true}
	choicesOf(t, p, svc, endpointsOf("10.1.0.1", "10.1.0.2"), []netip.Addr{alice, bob, carol})
	if n := p.states.affined.used.Load(); n != 2 {
		t.Errorf("remembered = %d, want 2", n)
	}
	c.now += time.Minute
	choicesOf(t, p, svc, endpointsOf("10.1.0.1"), []netip.Addr{alice})
	p.states.sweep(c.now)
	if n := p.states.affined.used.Load(); n != 1 {
		t.Errorf("remembered = %d after bob's time was up, want alice alone", n)
	}
	p.states.begin() // a snapshot without the Service
	p.states.sweep(c.now)
	if n := p.states.affined.used.Load(); n != 0 || len(p.states.ports) != 0 {
		t.Errorf("remembered = %d after the Service has gone, want none", n)
	}
}
