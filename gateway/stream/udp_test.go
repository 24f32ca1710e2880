package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

func TestUDPKeepsAClientAtItsDestination(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("dns", model.UDP, 30053, udpEcho(t, "a"), udpEcho(t, "b"), udpEcho(t, "c")))
	got := map[string]int{}
	for range 6 {
		c := udpDial(t, e.at(30053))
		first := ask(t, c, "?")
		got[first]++
		for range 3 {
			if again := ask(t, c, "?"); again != first {
				t.Errorf("answers of one client: %q, then %q", first, again)
			}
		}
	}
	if len(got) != 3 || got["a:?"] != 2 || got["b:?"] != 2 {
		t.Errorf("clients by destination = %v, want 2 each", got)
	}
	if n := e.value(t, "sallyport_stream_udp_sessions"); n != 6 {
		t.Errorf("sessions = %v, want 6", n)
	}
}

func TestUDPLargestAndEmptyDatagram(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("dns", model.UDP, 30053, udpEcho(t, "")))
	c := udpDial(t, e.at(30053))
	for _, size := range []int{0, 1, 65506} { // and the echo's colon: 65507 is IPv4's most
		text := strings.Repeat("x", size)
		if got := ask(t, c, text); got != ":"+text {
			t.Errorf("answer to %d bytes has %d, want %d", size, len(got), size+1)
		}
	}
}

// A socket connected to one address takes no answers from another, so that ask fails if the source is wrong.
func TestUDPAnswersFromTheAddressAsked(t *testing.T) {
	port := freePort(t)
	p := New(Options{})
	t.Cleanup(p.Close)
	s := &model.Snapshot{Services: []model.Service{service("dns", model.UDP, port, udpEcho(t, "a"))}}
	if err := p.Reconcile(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []netip.Addr{loopback(), loopback(), netip.IPv6Loopback()} {
		c := udpDial(t, netip.AddrPortFrom(ip, port).String())
		if got := ask(t, c, "?"); got != "a:?" {
			t.Errorf("answer by way of %v = %q, want %q", ip, got, "a:?")
		}
	}
}

func TestUDPIdleSessionExpires(t *testing.T) {
	const timeout = time.Hour
	e := newEdge(t, Options{UDPIdleTimeout: timeout})
	e.mustReconcile(t, service("dns", model.UDP, 30053, udpEcho(t, "a")))
	sessions := func() float64 { return e.value(t, "sallyport_stream_udp_sessions") }
	once, c := udpDial(t, e.at(30053)), udpDial(t, e.at(30053))
	before := e.uptime()
	ask(t, once, "?")
	ask(t, c, "?")
	ask(t, c, "?")

	e.sweep(before + timeout/4)
	if n := sessions(); n != 2 {
		t.Errorf("sessions before a quarter of the timeout = %v, want 2", n)
	}
	e.sweep(e.uptime() + timeout/4)
	eventually(t, "the session of the client that sent once has ended", func() bool { return sessions() == 1 })
	e.sweep(before + timeout)
	if n := sessions(); n != 1 {
		t.Errorf("sessions before the timeout = %v, want 1", n)
	}
	e.sweep(e.uptime() + timeout)
	eventually(t, "the session has ended", func() bool { return sessions() == 0 })
	if got := ask(t, c, "?"); got != "a:?" {
		t.Errorf("answer after the timeout = %q, want %q", got, "a:?")
	}
	if n := e.value(t, "sallyport_stream_udp_sessions_total"); n != 3 {
		t.Errorf("sessions ever = %v, want 3", n)
	}
}

func TestUDPSessionLivesAsLongAsItsDestination(t *testing.T) {
	e := newEdge(t, Options{})
	a, b := udpEcho(t, "a"), udpEcho(t, "b")
	e.mustReconcile(t, service("dns", model.UDP, 30053, a))
	c := udpDial(t, e.at(30053))
	for _, tt := range []struct {
		name         string
		destinations []netip.AddrPort
		want         string
	}{
		{"at first", []netip.AddrPort{a}, "a:?"},
		{"another comes", []netip.AddrPort{a, b}, "a:?"},
		{"its own goes", []netip.AddrPort{b}, "b:?"},
		{"its first comes back", []netip.AddrPort{a, b}, "b:?"},
	} {
		e.mustReconcile(t, service("dns", model.UDP, 30053, tt.destinations...))
		if got := ask(t, c, "?"); got != tt.want {
			t.Errorf("%s: answer = %q, want %q", tt.name, got, tt.want)
		}
	}
	e.mustReconcile(t)
	eventually(t, "the sessions have ended", func() bool { return e.value(t, "sallyport_stream_udp_sessions") == 0 })
	mustNotAnswer(t, c)
}

func TestUDPWithoutDestinationsIsRefused(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("dns", model.UDP, 30053))
	mustNotAnswer(t, udpDial(t, e.at(30053)))
}

// mustNotAnswer expects the kernel's ICMP port unreachable.
func mustNotAnswer(t *testing.T, c *net.UDPConn) {
	t.Helper()
	c.Write([]byte("?"))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("read = %d, %v, want connection refused", n, err)
	}
}

func TestUDPClientOfADeadDestinationChoosesAgain(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("dns", model.UDP, 30053, unused(), udpEcho(t, "alive")))
	c := udpDial(t, e.at(30053))
	buf := make([]byte, 100)
	eventually(t, "an answer of the living destination", func() bool {
		c.Write([]byte("?"))
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, _ := c.Read(buf)
		return string(buf[:n]) == "alive:?"
	})
}

func TestUDPSessionsAreBounded(t *testing.T) {
	e := newEdge(t, Options{MaxUDPSessions: 3})
	e.mustReconcile(t, service("dns", model.UDP, 30053, udpEcho(t, "a")), service("ntp", model.UDP, 30123, udpEcho(t, "b")))
	first, second, third := udpDial(t, e.at(30053)), udpDial(t, e.at(30123)), udpDial(t, e.at(30053))
	for _, c := range []*net.UDPConn{first, second} {
		ask(t, c, "?")
		ask(t, c, "?") // it stays, whoever comes
	}
	third.Write([]byte("?"))
	eventually(t, "the third client's datagram is dropped", func() bool {
		return e.value(t, "sallyport_stream_dropped_datagrams_total") == 1
	})
	e.mustReconcile(t, service("dns", model.UDP, 30053, udpEcho(t, "c"))) // ends both sessions
	eventually(t, "the sessions have ended", func() bool { return e.udpSessions.used.Load() == 0 })
	if got := ask(t, third, "!"); got != "c:!" {
		t.Errorf("answer = %q, want %q", got, "c:!")
	}
}

func TestUDPUnreachableDestinationIsCounted(t *testing.T) {
	e := newEdge(t, Options{})
	nowhere := netip.MustParseAddrPort("[fe80::1]:53") // link-local, on no link
	e.mustReconcile(t, service("dns", model.UDP, 30053, nowhere))
	c := udpDial(t, e.at(30053))
	c.Write([]byte("?"))
	eventually(t, "the datagram is dropped", func() bool { return e.value(t, "sallyport_stream_dropped_datagrams_total") == 1 })
	if n := e.udpSessions.used.Load(); n != 0 {
		t.Errorf("sessions = %d, want 0", n)
	}
}

// flood sends a datagram from each of so many addresses, and does not wait for answers, as if they were forged.
func flood(t *testing.T, addr string, sources int) {
	t.Helper()
	for range sources {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0))}
		c, err := d.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("flood"))
		c.Close()
	}
}

// sessionOf returns the session of a client; nil if it has none.
func (e edge) sessionOf(client *net.UDPConn) *session {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range e.listeners {
		if l, ok := b.listener.(*udpListener); ok {
			l.mu.Lock()
			defer l.mu.Unlock()
			for who, s := range l.sessions {
				if who.client == client.LocalAddr().(*net.UDPAddr).AddrPort() {
					return s
				}
			}
		}
	}
	return nil
}

// A flood of sources at one Service leaves room for the clients of others, and for those of its own that were there before.
func TestUDPFloodIsItsOwnServicesAlone(t *testing.T) {
	const most = 100
	e := newEdge(t, Options{MaxUDPSessions: most})
	silent, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	flooded := service("dns", model.UDP, 30053, udpEcho(t, "a"))
	flooded.VIPs = []netip.Addr{loopback()}
	flooded.Ports = append(flooded.Ports, service("", model.UDP, 30054, silent.LocalAddr().(*net.UDPAddr).AddrPort()).Ports...)
	flooded.Ports[1].Port++
	e.mustReconcile(t, flooded, service("ntp", model.UDP, 30123, udpEcho(t, "b")))
	regular := udpDial(t, e.at(30053))
	ask(t, regular, "?")
	ask(t, regular, "?")
	before := e.sessionOf(regular)
	for _, addr := range []string{e.at(30053), e.at(30054), netip.AddrPortFrom(flooded.VIPs[0], servicePort).String()} {
		flood(t, addr, 2*most)
	}
	eventually(t, "the flood exceeds what the Service may have", func() bool {
		return e.value(t, "sallyport_stream_dropped_datagrams_total") > most
	})
	if n := e.udpSessions.used.Load(); n > most/2 {
		t.Errorf("the Service has %d of %d sessions, want no more than half", n, most)
	}
	if got := ask(t, regular, "!"); got != "a:!" {
		t.Errorf("the client of before has the answer %q, want %q", got, "a:!")
	}
	if got := ask(t, udpDial(t, e.at(30123)), "?"); got != "b:?" {
		t.Errorf("another Service answers %q, want %q", got, "b:?")
	}
	if before == nil || e.sessionOf(regular) != before {
		t.Error("the client of before has another session")
	}
}

// icmpFragmentationNeeded tells the sender of a session's datagrams that they are too long for the way (RFC 1191).
func icmpFragmentationNeeded(t *testing.T, s *session) {
	t.Helper()
	from, to := s.conn.LocalAddr().(*net.UDPAddr).AddrPort(), s.endpoint.Addr()
	b := append([]byte{3, 4, 0, 0, 0, 0, 5, 0xb4}, // destination unreachable, fragmentation needed, MTU 1460
		0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, from.Port()), to.Port())
	b = append(b, 5, 0xc8, 0, 0)
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	c, err := net.Dial("ip4:icmp", from.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// That a datagram is too long says nothing against its destination.
func TestUDPTooLongADatagramKeepsTheSession(t *testing.T) {
	s, _ := aSession(t)
	s.listener.forward(make([]byte, maxDatagram-1), s.replyControl, s.peer.client)
	if s.listener.sessions[s.peer] != s {
		t.Error("the session has ended")
	}
}

// The same by way of a router, which tells later. Raw sockets take root.
func TestUDPTooLongForTheWayKeepsTheSession(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("SALLYPORT_LAB") != "required" {
		t.Skip("raw sockets need root")
	}
	s, _ := aSession(t)
	raw, err := s.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	s.conn.SetDeadline(time.Now().Add(patience))
	icmpFragmentationNeeded(t, s)
	if !s.reply(newInbox(&s.listener.proxy.datagrams), raw) {
		t.Error("the session has ended")
	}
}

// A destination that takes nothing must not hold up the clients of others: what it has no room for is dropped.
func TestUDPSendingDoesNotWait(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1]) // it reads nothing
	f := os.NewFile(uintptr(pair[0]), "full")
	defer f.Close()
	f.SetDeadline(time.Now().Add(patience))
	out, err := newOutbox(f)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		err = out.send(make([]byte, 1000))
	}
	if !errors.Is(err, unix.EAGAIN) || isOver(err) {
		t.Errorf("send without room: %v, want EAGAIN, which ends no session", err)
	}
}

// A listener has no buffer while it waits: there may be thousands of them.
func TestUDPListenersHoldNoBuffers(t *testing.T) {
	const listeners = 300
	e := newEdge(t, Options{})
	before := memory()
	echo := udpEcho(t, "a")
	var services []model.Service
	for i := range listeners {
		services = append(services, service(fmt.Sprint("dns-", i), model.UDP, uint16(30000+i), echo))
	}
	e.mustReconcile(t, services...)
	for i := range listeners {
		ask(t, udpDial(t, e.at(uint16(30000+i))), "?")
	}
	each := (memory() - before) / listeners
	if each > maxDatagram*3/2 { // one on the stack would make it twice as large as a buffer
		t.Errorf("a listener with a client takes %d bytes, want less than a buffer", each)
	}
}

// memory returns how much is in use by the heap and by goroutines.
func memory() int {
	var m runtime.MemStats
	runtime.GC() // a pool gives up what it has at the second one
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// aSession returns a session that does not serve yet, and the socket of its destination.
func aSession(t *testing.T) (*session, *net.UDPConn) {
	destination, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { destination.Close() })
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("dns", model.UDP, 30053, destination.LocalAddr().(*net.UDPAddr).AddrPort()))
	var l *udpListener
	for _, b := range e.listeners {
		l = b.listener.(*udpListener)
	}
	control := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: e.ip.As4()})
	client := udpDial(t, e.at(30053)).LocalAddr().(*net.UDPAddr).AddrPort()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.begin(peer{client, e.ip}, control)
	l.sessions[s.peer] = s // closed with the listener
	return s, destination
}

func TestUDPDatagramsDoNotAllocate(t *testing.T) {
	s, destination := aSession(t)
	payload := []byte("payload")
	if n := testing.AllocsPerRun(100, func() { s.listener.forward(payload, s.replyControl, s.peer.client) }); n != 0 {
		t.Errorf("forward to the destination allocates %v times, want 0", n)
	}
	if n := len(s.listener.sessions); n != 1 {
		t.Errorf("sessions = %d, want 1: forward did not find the client again", n)
	}

	raw, err := s.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	in := newInbox(&s.listener.proxy.datagrams)
	from := s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := destination.WriteToUDPAddrPort(payload, from); err != nil || !s.reply(in, raw) {
			t.Errorf("no reply, %v", err)
		}
	}); n != 0 {
		t.Errorf("reply to the client allocates %v times, want 0", n)
	}
}

func BenchmarkUDPRoundTrip(b *testing.B) {
	e := newEdge(b, Options{})
	e.mustReconcile(b, service("dns", model.UDP, 30053, udpEcho(b, "a")))
	c := udpDial(b, e.at(30053))
	c.SetDeadline(time.Time{})
	for b.Loop() {
		ask(b, c, "?")
	}
}
