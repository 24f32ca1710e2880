package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/watcher/model"
)

func TestTCPSpreadsOverDestinations(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "a"), tcpEcho(t, "b"), tcpEcho(t, "c")))
	got := map[string]int{}
	for range 9 {
		c := dial(t, e.at(30001))
		got[c.line(t)]++
		c.mustEcho(t)
	}
	if fmt.Sprint(got) != "map[a:3 b:3 c:3]" {
		t.Errorf("connections by destination = %v, want 3 each", got)
	}
}

func TestTCPOnVIP(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, 0, tcpEcho(t, "a"))
	svc.VIPs = []netip.Addr{loopback(), loopback()}
	e.mustReconcile(t, svc)
	for _, vip := range svc.VIPs {
		dial(t, netip.AddrPortFrom(vip, servicePort).String()).mustLine(t, "a")
	}
}

// mustLine reads one line and compares it.
func (c client) mustLine(t *testing.T, want string) {
	t.Helper()
	if got := c.line(t); got != want {
		t.Errorf("line = %q, want %q", got, want)
	}
}

func TestTCPOnAllAddressesOfBothFamilies(t *testing.T) {
	port := freePort(t)
	p := New(Options{})
	t.Cleanup(p.Close)
	s := &model.Snapshot{Services: []model.Service{service("web", model.TCP, port, tcpEcho(t, "a"))}}
	if err := p.Reconcile(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []netip.Addr{loopback(), netip.IPv6Loopback()} {
		dial(t, netip.AddrPortFrom(ip, port).String()).mustLine(t, "a")
	}
}

// freePort returns a TCP port that is free on all addresses.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestTCPPassesOnHalfClose(t *testing.T) {
	sum := tcpServer(t, func(c *net.TCPConn) { // answers when it has heard all
		n, _ := io.Copy(io.Discard, c)
		fmt.Fprintf(c, "%d bytes\n", n)
	})
	terse := tcpServer(t, func(c *net.TCPConn) { // ends its side first, and then listens
		c.CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		if n != 5 {
			t.Errorf("heard %d bytes after ending its own side, want 5", n)
		}
	})
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("sum", model.TCP, 30001, sum), service("terse", model.TCP, 30002, terse))

	c := dial(t, e.at(30001))
	if _, err := c.Write(bytes.Repeat([]byte("x"), 3<<20)); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	c.mustLine(t, "3145728 bytes")

	c = dial(t, e.at(30002))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read = %v, want EOF", err)
	}
	io.WriteString(c, "hello")
	c.CloseWrite()
	eventually(t, "both connections have ended", func() bool { return e.value(t, "sallyport_stream_connections") == 0 })
	if got := e.value(t, "sallyport_stream_bytes_total"); got != 3<<20+14+5 {
		t.Errorf("bytes = %v, want %d", got, 3<<20+14+5)
	}
}

func TestTCPPassesOnReset(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpServer(t, func(c *net.TCPConn) {
		io.WriteString(c, "half of an ans\n")
		c.Read(make([]byte, 1))
		reset(c)
	})))
	c := dial(t, e.at(30001))
	c.line(t)
	io.WriteString(c, "!")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after the destination's reset = %v, want connection reset", err)
	}
}

func TestTCPTriesOtherDestinations(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, unused(), tcpEcho(t, "alive"), unused()))
	for range 3 {
		dial(t, e.at(30001)).mustLine(t, "alive")
	}
	if got := e.value(t, "sallyport_stream_dial_failures_total"); got < 2 {
		t.Errorf("dial failures = %v, want at least 2: in three turns each dead destination has one", got)
	}
}

func TestTCPSilentDestinationLeavesTimeForOthers(t *testing.T) {
	t.Parallel() // it takes two of minTry
	silent := fullBacklog(t)
	e := newEdge(t, Options{DialTimeout: 2 * minTry})
	e.mustReconcile(t, service("web", model.TCP, 30001, silent, tcpEcho(t, "alive")))
	for range 2 {
		dial(t, e.at(30001)).mustLine(t, "alive")
	}
}

// fullBacklog returns an address that neither accepts nor refuses connections.
func fullBacklog(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	ip := loopback().As4()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: ip, Port: 9999}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4(ip), 9999)
	dial(t, addr.String()) // takes the one place
	return addr
}

func TestTCPWithoutLivingDestinationIsReset(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, unused(), unused()))
	c, err := net.DialTimeout("tcp", e.at(30001), patience)
	if err == nil { // else the reset was here before dial returned
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("dial and read = %v, want connection reset", err)
	}
	if got := e.value(t, "sallyport_stream_accepted_total"); got != 1 {
		t.Errorf("accepted = %v, want 1", got)
	}
}

func TestTCPWithoutDestinationsIsRefused(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001))
	mustRefuse(t, e.at(30001))
}

func mustRefuse(t *testing.T, addr string) {
	t.Helper()
	if c, err := net.DialTimeout("tcp", addr, patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial = %v, %v, want connection refused", c, err)
	}
}

func TestTCPConnectionOutlivesItsEndpointAndService(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "old")))
	c := dial(t, e.at(30001))
	c.mustLine(t, "old")

	e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "new")))
	dial(t, e.at(30001)).mustLine(t, "new")
	c.mustEcho(t)

	e.mustReconcile(t)
	mustRefuse(t, e.at(30001))
	c.mustEcho(t)
}

func TestTCPPortMovesToAnotherService(t *testing.T) {
	e := newEdge(t, Options{})
	dest := tcpEcho(t, "same pod")
	e.mustReconcile(t, service("blue", model.TCP, 30001, dest))
	e.mustReconcile(t, service("green", model.TCP, 30001, dest))
	dial(t, e.at(30001)).mustLine(t, "same pod")
	for _, b := range e.listeners {
		if b.service.Name != "green" {
			t.Errorf("listener belongs to %v, want green", b.service)
		}
	}
}

func TestTCPIdleConnectionIsReset(t *testing.T) {
	e := newEdge(t, Options{TCPIdleTimeout: 20 * time.Millisecond})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "a")))
	c := dial(t, e.at(30001))
	c.line(t)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read = %v, want connection reset", err)
	}
}

func TestTCPBusyConnectionIsNotIdle(t *testing.T) {
	const timeout = time.Hour
	for _, tt := range []struct {
		name    string
		timeout time.Duration
	}{{"used less than the timeout ago", timeout}, {"no timeout", -1}} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEdge(t, Options{TCPIdleTimeout: tt.timeout})
			e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "a")))
			c := dial(t, e.at(30001))
			c.line(t)
			e.sweep(e.uptime() + 2*timeout) // due for a look, which shows that it was used just now
			c.mustEcho(t)
		})
	}
}

func TestTCPManyConnectionsWhileDestinationsChange(t *testing.T) {
	e := newEdge(t, Options{})
	a, b := tcpEcho(t, "a"), tcpEcho(t, "b")
	e.mustReconcile(t, service("web", model.TCP, 30001, a, b))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				if err := roundTrip(e.at(30001)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 50 {
		e.mustReconcile(t, service("web", model.TCP, 30001, [...]netip.AddrPort{a, b}[i%2]))
	}
	wg.Wait()
}

// roundTrip opens a connection, ends its side of it, and reads to the end.
func roundTrip(addr string) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "ping")
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || len(got) != len("a\nping") {
		return fmt.Errorf("answer = %q, %w", got, err)
	}
	return nil
}

// Connections held open at one Service leave room for the clients of others: each takes file descriptors.
func TestTCPConnectionsOfOneServiceLeaveRoom(t *testing.T) {
	const most = 20
	e := newEdge(t, Options{MaxConnections: most})
	flooded := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	flooded.VIPs = []netip.Addr{loopback()}
	e.mustReconcile(t, flooded, service("shop", model.TCP, 30002, tcpEcho(t, "b")))
	for range most / 4 {
		dial(t, e.at(30001)).mustLine(t, "a")
		dial(t, netip.AddrPortFrom(flooded.VIPs[0], servicePort).String()).mustLine(t, "a")
	}
	mustBeReset(t, e.at(30001))
	other := dial(t, e.at(30002))
	other.mustLine(t, "b")
	other.Close()
	e.mustReconcile(t)
	eventually(t, "only those of the one Service are counted", func() bool { return e.connections.used.Load() == most/2 })
}

// BenchmarkTCPConnect opens and ends connections. Its allocations are nearly all of package net, for the four sockets that this
// process has of each connection, two of them dialed; the relay's own are its goroutines, the timer of a dial, its entry.
func BenchmarkTCPConnect(b *testing.B) {
	b.ReportAllocs()
	e := newEdge(b, Options{})
	e.mustReconcile(b, service("web", model.TCP, 30001, tcpEcho(b, "a")))
	for b.Loop() {
		if err := roundTrip(e.at(30001)); err != nil {
			b.Fatal(err)
		}
	}
}
