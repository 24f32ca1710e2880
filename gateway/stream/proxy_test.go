package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/watcher/model"
)

func TestUnbindablePortHurtsNoOther(t *testing.T) {
	e := newEdge(t, Options{})
	squatter, err := net.Listen("tcp", e.at(30002))
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	foreign := service("foreign", model.TCP, 0, tcpEcho(t, "f"))
	foreign.VIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	s := &model.Snapshot{Services: []model.Service{
		service("first", model.TCP, 30001, tcpEcho(t, "1")),
		service("second", model.TCP, 30002, tcpEcho(t, "2")),
		foreign,
		service("third", model.TCP, 30003, tcpEcho(t, "3")),
		service("twin", model.TCP, 30003, tcpEcho(t, "t")),
		service("sctp", "SCTP", 30004, tcpEcho(t, "s")),
	}}
	err = e.Reconcile(t.Context(), s)
	want := fmt.Sprintf(`stream: Service default/twin: TCP %[1]s:30003 is taken by Service default/third; give one of them another port
stream: Service default/foreign: listen tcp4 192.0.2.1:8080: bind: cannot assign requested address; add the address to an interface of this machine: userspace serves local addresses only
stream: Service default/second: listen tcp4 %[1]s:30002: bind: address already in use; stop the program that has the port (ss -lnp shows it), or give the Service another port`, e.ip)
	if got := fmt.Sprint(err); got != want {
		t.Errorf("Reconcile:\ngot  %s\nwant %s", got, want)
	}
	if n := e.value(t, "sallyport_stream_unbound_listeners"); n != 3 {
		t.Errorf("unbound = %v, want 3: SCTP is not asked for", n)
	}
	dial(t, e.at(30001)).mustLine(t, "1")
	dial(t, e.at(30003)).mustLine(t, "3")

	squatter.Close()
	e.mustReconcile(t, s.Services[:2]...)
	dial(t, e.at(30002)).mustLine(t, "2")
	if n := e.value(t, "sallyport_stream_listeners"); n != 2 {
		t.Errorf("listeners = %v, want 2", n)
	}
}

func TestAdvice(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Err: syscall.EACCES}, "CAP_NET_BIND_SERVICE"},
		{fmt.Errorf("socket: %w", syscall.EMFILE), "LimitNOFILE"},
		{errors.New("anything else"), ""},
	} {
		if got := advice(tt.err); !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("advice(%v) = %q, want it to name %q", tt.err, got, tt.want)
		}
	}
}

func TestReconcileIsIdempotent(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	e.mustReconcile(t, svc)
	var first *target
	for _, b := range e.listeners {
		first = b.listener.(*tcpListener).target()
	}
	e.mustReconcile(t, svc)
	for _, b := range e.listeners {
		if again := b.listener.(*tcpListener).target(); again != first {
			t.Error("the same snapshot gave a listener a new target, which begins its turns again")
		}
	}
}

func TestAddressNames(t *testing.T) {
	for _, tt := range []struct {
		in                     address
		str, network, hostPort string
	}{
		{address{model.TCP, anyAddress, 80}, "TCP *:80", "tcp", ":80"},
		{address{model.TCP, netip.IPv4Unspecified(), 80}, "TCP 0.0.0.0:80", "tcp4", "0.0.0.0:80"},
		{address{model.UDP, netip.IPv6Unspecified(), 53}, "UDP [::]:53", "udp6", "[::]:53"},
		{address{model.UDP, netip.MustParseAddr("192.0.2.1"), 53}, "UDP 192.0.2.1:53", "udp4", "192.0.2.1:53"},
	} {
		network := tt.in.network(strings.ToLower(string(tt.in.protocol)))
		if got := [...]string{tt.in.String(), network, tt.in.hostPort()}; got != [...]string{tt.str, tt.network, tt.hostPort} {
			t.Errorf("%#v: got %q, want %q", tt.in, got, [...]string{tt.str, tt.network, tt.hostPort})
		}
	}
}

func TestCloseEndsEverything(t *testing.T) {
	tcp, udp, silent := tcpEcho(t, "a"), udpEcho(t, "a"), tcpServer(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	before := runtime.NumGoroutine()
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcp), service("dns", model.UDP, 30053, udp), service("sink", model.TCP, 30002, silent))
	for range 5 {
		dial(t, e.at(30001)).line(t)
		ask(t, udpDial(t, e.at(30053)), "?")
	}
	c := dial(t, e.at(30002))
	e.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after Close = %v, want a reset", err)
	}
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
	if err := e.Reconcile(t.Context(), &model.Snapshot{}); !errors.Is(err, errClosed) {
		t.Errorf("Reconcile after Close = %v, want %v", err, errClosed)
	}
	e.Close() // again does nothing
}

func TestShutdownWaitsForConnections(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "a")))
	c := dial(t, e.at(30001))
	c.line(t)
	done := make(chan error, 1)
	go func() { done <- e.Shutdown(t.Context()) }()
	eventually(t, "no one listens", func() bool { return e.value(t, "sallyport_stream_listeners") == 0 })
	c.mustEcho(t)
	select {
	case err := <-done:
		t.Fatalf("Shutdown = %v before the connection has ended", err)
	default:
	}
	c.Close()
	if err := <-done; err != nil {
		t.Errorf("Shutdown = %v, want nil", err)
	}
}

func TestShutdownCutsWhatDoesNotEnd(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "a")))
	c := dial(t, e.at(30001))
	c.line(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := e.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown = %v, want %v", err, context.DeadlineExceeded)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after Shutdown = %v, want connection reset", err)
	}
}

func TestTakeAllGoesOnAfterFailures(t *testing.T) {
	p := New(Options{})
	t.Cleanup(p.Close)
	answers := []error{syscall.EMFILE, syscall.EMFILE, nil, net.ErrClosed}
	p.takeAll(func() error {
		err := answers[0]
		answers = answers[1:]
		return err
	})
	if len(answers) != 0 {
		t.Errorf("takeAll ended %d answers early", len(answers))
	}
}

func TestMetricNames(t *testing.T) {
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpEcho(t, "a")))
	dial(t, e.at(30001)).line(t)
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) < 12 {
		t.Errorf("%d metrics, want all 12", len(families))
	}
	for _, f := range families {
		ours := strings.HasPrefix(f.GetName(), "sallyport_stream_") || strings.HasPrefix(f.GetName(), "sallyport_l4_")
		if !ours || f.GetHelp() == "" {
			t.Errorf("metric %s, help %q: want sallyport_stream_* or sallyport_l4_* with help", f.GetName(), f.GetHelp())
		}
	}
}
