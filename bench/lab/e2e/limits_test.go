package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

// limited is a Service with a limit by annotation.
func (s *site) limited(t *testing.T, annotation string, vips []netip.Addr) {
	t.Helper()
	ns := s.webPods(t, 1)
	s.Apply(t, ns, s.loadBalancer("lb", vips, ", sallyport.io/"+annotation, "ports: [{port: 8000, targetPort: serve}]"))
}

// burst opens n connections at once and returns those by which a request was answered. They stay open.
func (c caller) burst(t *testing.T, to netip.AddrPort, n int) []*session {
	t.Helper()
	results := make(chan *session)
	for range n {
		go func() {
			conn, err := c.dial(t.Context(), "tcp", to)
			if err != nil {
				results <- nil
				return
			}
			one := &session{conn, bufio.NewReader(conn)}
			if _, err := one.hostname(); err != nil {
				conn.Close()
				one = nil
			}
			results <- one
		}()
	}
	var open []*session
	for range n {
		if one := <-results; one != nil {
			open = append(open, one)
			t.Cleanup(func() { _ = one.Close() }) // closed already, or not
		}
	}
	return open
}

func closeAll(sessions []*session) {
	for _, one := range sessions {
		one.Close()
	}
}

// stranger is a client that shares nothing with the others, of the family of to: no address, and in IPv6 no /64.
func (s *site) stranger(t *testing.T, g *gate, to netip.Addr) caller {
	t.Helper()
	addr := netip.MustParseAddr("2001:db8:ffff::1")
	if to.Is4() {
		addr = netip.MustParseAddr("203.0.113.1")
	}
	s.hold(t, s.client(), network.ClientsLink, addr)
	s.route(t, g.host, netip.PrefixFrom(addr, addr.BitLen()), s.client().Addr, s.client().Addr6)
	return caller{s.client(), addr}
}

// asks is nil if a request of the caller is answered.
func (c caller) asks(to netip.AddrPort) error {
	_, err := c.get(to, "/hostname")
	return err
}

func limitNew(t *testing.T, s *site, gates []*gate) {
	vips := s.vips(70)
	s.limited(t, `limit-new-connections: "5"`, vips)
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for _, vip := range vips {
			one, other, to := s.caller(), s.stranger(t, g, vip), netip.AddrPortFrom(vip, 8000)
			eventually(t, func() error { return other.asks(to) })
			if got := len(one.burst(t, to, 30)); got < 3 || got > 15 { // 5 at once, and 5 a second while the others try again
				t.Errorf("%v: of 30 connections at once %d came about, with a limit of 5 a second", to, got)
			}
			if err := other.asks(to); err != nil {
				t.Errorf("%v: another client pays for it: %v", to, err)
			}
			eventually(t, func() error { return one.asks(to) })
		}
	})
}

func limitPerClient(t *testing.T, s *site, gates []*gate) {
	vips := s.vips(71)
	s.limited(t, `limit-connections-per-client: "3"`, vips)
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for _, vip := range vips {
			one, other, to := s.caller(), s.stranger(t, g, vip), netip.AddrPortFrom(vip, 8000)
			eventually(t, func() error { return other.asks(to) })
			open := one.burst(t, to, 10)
			if len(open) != 3 {
				t.Errorf("%v: a client has %d connections, with a limit of 3", to, len(open))
			}
			if err := other.asks(to); err != nil {
				t.Errorf("%v: another client pays for it: %v", to, err)
			}
			closeAll(open)
			cluster.Eventually(t, forgotten, func() error { return one.asks(to) })
		}
	})
}

// forgotten is when the kernel no longer counts a connection that was closed.
const forgotten = 20 * time.Second

// limitTotal counts the connections of both families together.
func limitTotal(t *testing.T, s *site, gates []*gate) {
	vips := s.vips(72)
	s.limited(t, `limit-connections: "4"`, vips)
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		to, to6 := netip.AddrPortFrom(vips[0], 8000), netip.AddrPortFrom(vips[1], 8000)
		eventually(t, func() error { return errors.Join(s.caller().asks(to), s.caller().asks(to6)) })
		var open []*session
		cluster.Eventually(t, forgotten, func() error { // those of before are counted until they are forgotten
			closeAll(open)
			if open = s.caller().burst(t, to, 10); len(open) != 4 {
				return fmt.Errorf("%v: there are %d connections, with a limit of 4", to, len(open))
			}
			return nil
		})
		closeAll(open)
		cluster.Eventually(t, forgotten, func() error { return s.caller().asks(to6) })
	})
}
