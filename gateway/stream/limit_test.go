package stream

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"sallyport/watcher/model"
)

// A clock is an uptime that a test sets.
type clock struct{ now time.Duration }

func (c *clock) uptime() time.Duration { return c.now }

func newLimiter(limits model.Limits, most int64) (*limiter, *clock) {
	c := &clock{now: time.Hour}
	l := &limiter{uptime: c.uptime, remembered: &budget{most: most}}
	l.set(&limits)
	return l, c
}

var (
	alice     = netip.MustParseAddr("192.0.2.1")
	bob       = netip.MustParseAddr("192.0.2.2")
	carol     = netip.MustParseAddr("2001:db8:0:1::1")
	carolToo  = netip.MustParseAddr("2001:db8:0:1:ffff::2") // of the same /64
	neighbour = netip.MustParseAddr("2001:db8:0:2::1")
)

func TestLimitOfConnections(t *testing.T) {
	for _, tt := range []struct {
		limits  model.Limits
		clients []netip.Addr
		want    []denial
	}{
		{model.Limits{}, []netip.Addr{alice, alice, bob}, []denial{"", "", ""}},
		{model.Limits{Total: 2}, []netip.Addr{alice, alice, bob}, []denial{"", "", denyTotal}},
		{model.Limits{PerClient: 1}, []netip.Addr{alice, alice, bob}, []denial{"", denyPerClient, ""}},
		{model.Limits{PerClient: 1}, []netip.Addr{carol, carolToo, neighbour}, []denial{"", denyPerClient, ""}},
		{model.Limits{NewPerSecond: 2}, []netip.Addr{alice, alice, alice, bob}, []denial{"", "", denyRate, ""}},
		{model.Limits{NewPerSecond: 1}, []netip.Addr{carol, carolToo, neighbour}, []denial{"", denyRate, ""}},
		{model.Limits{NewPerSecond: 9, PerClient: 2, Total: 3}, []netip.Addr{alice, alice, alice, bob, carol},
			[]denial{"", "", denyPerClient, "", denyTotal}},
	} {
		l, _ := newLimiter(tt.limits, 100)
		for i, c := range tt.clients {
			if _, got := l.admit(c); got != tt.want[i] {
				t.Errorf("%+v: client %d, %v: %q, want %q", tt.limits, i, c, got, tt.want[i])
			}
		}
	}
}

func TestLimitIsFreeAgainAfterARelease(t *testing.T) {
	l, _ := newLimiter(model.Limits{PerClient: 1, Total: 1}, 100)
	a, _ := l.admit(alice)
	if _, denied := l.admit(alice); denied != denyTotal {
		t.Errorf("second connection: %q, want %q", denied, denyTotal)
	}
	a.release()
	if len(l.clients) != 0 || l.remembered.used.Load() != 0 {
		t.Errorf("%d clients are remembered after the last connection, want none", len(l.clients))
	}
	if _, denied := l.admit(alice); denied != "" {
		t.Errorf("connection after the release: %q, want it admitted", denied)
	}
}

// Over any time a client opens as many connections as its rate allows, and a second's worth more.
func TestLimitOfNewConnectionsRefillsEvenly(t *testing.T) {
	for _, rate := range []uint32{1, 3, 7, 20, 1000} {
		l, c := newLimiter(model.Limits{NewPerSecond: rate}, 100)
		const seconds = 10
		admitted := 0
		for end := c.now + seconds*time.Second; c.now < end; c.now += time.Second / time.Duration(4*rate) {
			if a, denied := l.admit(alice); denied == "" {
				admitted++
				a.release()
			}
		}
		if want := int(rate) * (seconds + 1); admitted > want || admitted < want-2-want/100 {
			t.Errorf("rate %d: %d connections in %d s, want %d", rate, admitted, seconds, want)
		}
	}
}

func TestLimitsMayChange(t *testing.T) {
	l, _ := newLimiter(model.Limits{}, 100)
	var open []admission
	admit := func(want denial) {
		t.Helper()
		a, denied := l.admit(alice)
		if denied != want {
			t.Errorf("denied = %q, want %q", denied, want)
		}
		if denied == "" {
			open = append(open, a)
		}
	}
	admit("")
	admit("")
	l.set(&model.Limits{Total: 2})
	admit(denyTotal)
	l.set(&model.Limits{PerClient: 1}) // those from before do not count
	admit("")
	admit(denyPerClient)
	l.set(nil)
	admit("")
	for _, a := range open {
		a.release()
	}
	if !l.idle() {
		t.Errorf("total %d, %d clients after all were released", l.total, len(l.clients))
	}
}

func TestLimitedClientsAreBounded(t *testing.T) {
	l, c := newLimiter(model.Limits{NewPerSecond: 1}, 4)
	first, _ := l.admit(alice)
	second, _ := l.admit(bob)
	second.release() // and bob's second is not over
	if _, denied := l.admit(carol); denied != denyFull {
		t.Errorf("third client: %q, want %q", denied, denyFull)
	}
	c.now += time.Second
	if _, denied := l.admit(carol); denied != "" {
		t.Errorf("third client, a second later: %q, want it in bob's place", denied)
	}
	if _, denied := l.admit(neighbour); denied != denyFull {
		t.Errorf("fourth client: %q, want %q: the others have connections", denied, denyFull)
	}
	first.release()
	c.now += time.Second
	l.sweep(c.now)
	if n := l.remembered.used.Load(); n != 1 || len(l.clients) != 1 {
		t.Errorf("remembered = %d of %d, want only carol", n, len(l.clients))
	}
}

// The clients of one Service leave room for those of others.
func TestLimitedClientsOfOneServiceLeaveRoom(t *testing.T) {
	const most = 100
	flooded, c := newLimiter(model.Limits{PerClient: 1}, most)
	other := &limiter{uptime: c.uptime, remembered: flooded.remembered, limits: model.Limits{PerClient: 1}}
	for i := range most {
		flooded.admit(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	if _, denied := flooded.admit(alice); denied != denyFull || len(flooded.clients) != most/2 {
		t.Errorf("with %d clients the next one: %q, want half of %d, and %q", len(flooded.clients), denied, most, denyFull)
	}
	if _, denied := other.admit(alice); denied != "" {
		t.Errorf("a client of another Service: %q, want it admitted", denied)
	}
}

func TestLimiterDoesNotAllocateForAKnownClient(t *testing.T) {
	l, _ := newLimiter(model.Limits{PerClient: 2, Total: 9}, 100)
	l.admit(carol)
	if n := testing.AllocsPerRun(100, func() {
		a, denied := l.admit(carolToo)
		if denied != "" {
			t.Fatal(denied)
		}
		a.release()
	}); n != 0 {
		t.Errorf("admit and release allocate %v times, want 0", n)
	}
}

func TestServiceIsLimitedOverAllItsPorts(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	svc.Ports = append(svc.Ports, service("", model.UDP, 30053, udpEcho(t, "b")).Ports...)
	svc.Limits = &model.Limits{Total: 2}
	e.mustReconcile(t, svc)
	first := dial(t, e.at(30001))
	first.line(t)
	ask(t, udpDial(t, e.at(30053)), "?")

	mustBeReset(t, e.at(30001))
	udpDial(t, e.at(30053)).Write([]byte("?"))
	eventually(t, "both are denied", func() bool { return e.value(t, "sallyport_stream_denied_total") == 2 })
	if n := e.udpSessions.used.Load(); n != 1 {
		t.Errorf("UDP sessions = %d, want 1", n)
	}

	first.Close()
	eventually(t, "there is room", func() bool { return e.value(t, "sallyport_stream_connections") == 0 })
	eventually(t, "a connection is taken again", func() bool { return tryEcho(e.at(30001)) })
}

// tryEcho says whether a connection comes about.
func tryEcho(addr string) bool { return roundTrip(addr) == nil }

func TestServiceIsLimitedByClientOverAllItsAddresses(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	svc.VIPs, svc.Limits = []netip.Addr{loopback()}, &model.Limits{PerClient: 1}
	e.mustReconcile(t, svc)
	dial(t, netip.AddrPortFrom(svc.VIPs[0], servicePort).String()).line(t) // both are from 127.0.0.1
	mustBeReset(t, e.at(30001))
	c, err := dialFrom(loopback(), e.at(30001), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("another client: %v, want an answer", err)
	}
}

// Limits of a Service, and what is counted for them, outlive a snapshot without it while it has connections.
func TestLimitsOutliveTheirService(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	svc.Limits = &model.Limits{Total: 1}
	e.mustReconcile(t, svc)
	c := dial(t, e.at(30001))
	c.line(t)
	e.mustReconcile(t)
	e.sweep(e.uptime())
	e.mustReconcile(t, svc)
	mustBeReset(t, e.at(30001))

	e.mustReconcile(t)
	c.Close()
	eventually(t, "all is forgotten", func() bool {
		e.sweep(e.uptime())
		return len(e.states.ports) == 0 && len(e.states.services) == 0
	})
}

func TestLimiterIsSafeForConcurrentUse(t *testing.T) {
	l, _ := newLimiter(model.Limits{PerClient: 3, Total: 20}, 5)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 500 {
				if a, denied := l.admit(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})); denied == "" {
					a.release()
				}
			}
		})
	}
	wg.Wait()
	if n := l.remembered.used.Load(); !l.idle() || n != 0 {
		t.Errorf("total %d, clients %d, remembered %d after the last release", l.total, len(l.clients), n)
	}
}
