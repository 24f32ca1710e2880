package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
)

// A change of the table, or of the endpoints, fails no request.
func TestReconcileUnderLoad(t *testing.T) {
	backend := func(name string) string {
		return httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, name)
		})
	}
	addrs := []string{backend("a"), backend("b"), backend("c")}
	e := start(t, Options{})
	e.serve(t, map[string][]string{" /": addrs})

	var done atomic.Bool
	var clients sync.WaitGroup
	var served atomic.Int64
	for i := range 8 {
		clients.Go(func() {
			c := dial(t, e)
			for !done.Load() {
				method := []string{"GET", "POST"}[i%2]
				c.send(method + " /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
				resp, body := c.response(method)
				if resp.StatusCode != 200 || len(body) != 1 {
					t.Errorf("got %d %q", resp.StatusCode, body)
					return
				}
				served.Add(1)
			}
		})
	}
	for i := range 200 {
		routes := map[string][]string{" /": addrs[:1+i%3]}
		for k := range i % 7 {
			routes[fmt.Sprintf("h%d /", k)] = addrs
		}
		e.serve(t, routes)
		before := served.Load()
		wait(t, "requests were served by the new table", func() bool { return served.Load() > before+8 || t.Failed() })
	}
	done.Store(true)
	clients.Wait()
	wait(t, "the endpoints have no request", func() bool {
		return e.metric(t, "sallyport_http_requests_in_flight") == 0
	})
	for p := range e.state.Load().pools {
		if n := p.InFlight(); n != 0 {
			t.Errorf("endpoint %v still has %d requests", p.Addr(), n)
		}
	}
}

// A 404 would be believed, and kept, by caches and crawlers.
func TestBeforeTheFirstSnapshotNothingIsMissing(t *testing.T) {
	e := start(t, Options{})
	c := dial(t, e)
	for _, want := range []int{503, 404} {
		c.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if resp, _ := c.response("GET"); resp.StatusCode != want {
			t.Errorf("got %d, want %d", resp.StatusCode, want)
		}
		e.serve(t, nil)
	}
}

func TestVanishedEndpointsAreLetGo(t *testing.T) {
	gone := make(chan bool)
	old := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, ok)
		readBlock(br)
		close(gone)
	})
	e := start(t, Options{BackendIdleTimeout: time.Hour})
	e.serve(t, map[string][]string{" /": {old}})
	c := dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.response("GET")
	e.serve(t, map[string][]string{" /": {rawBackend(t, answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew"))}})
	<-gone
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, body := c.response("GET"); body != "new" {
		t.Errorf("body %q, want new", body)
	}
	wait(t, "the old endpoint is forgotten", func() bool {
		runtime.GC()
		return e.Gateway.registry.Len() == 1
	})
}

func TestDrain(t *testing.T) {
	began, finish := make(chan bool), make(chan bool)
	e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readBlock(br)
			if err != nil {
				return
			}
			if strings.HasPrefix(head, "GET /slow") {
				close(began)
				<-finish
			}
			io.WriteString(c, ok)
		}
	}))
	idle, slow, next := dial(t, e), dial(t, e), dial(t, e)
	for _, c := range []*client{idle, next} {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.response("GET")
	}
	slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-began
	stopped := make(chan bool)
	go func() { e.stop(); close(stopped) }()
	wait(t, "draining began", e.draining.Load)

	next.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n") // a kept-alive connection is still served
	if resp, body := next.response("GET"); body != "ok" || !resp.Close {
		t.Errorf("while draining: %q, close %v, want ok and a close", body, resp.Close)
	}
	if rest, err := idle.rest(); rest != "" || err != nil {
		t.Errorf("idle connection: %q, %v, want the end", rest, err)
	}
	wait(t, "new connections are refused", func() bool {
		c, err := net.Dial("tcp", e.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(finish)
	if resp, body := slow.response("GET"); body != "ok" || !resp.Close {
		t.Errorf("request in flight: %q, close %v, want ok and a close", body, resp.Close)
	}
	<-stopped
}

func TestDrainTimeCutsWhatIsLeft(t *testing.T) {
	began := make(chan bool)
	e := start(t, Options{DrainTime: 50 * time.Millisecond})
	e.serve(t, map[string][]string{" /": {rawBackend(t, func(_ net.Conn, br *bufio.Reader) {
		close(began)
		io.Copy(io.Discard, br)
	})}})
	c := dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-began
	e.stop()
	if _, err := http.ReadResponse(c.br, nil); err == nil {
		t.Error("a request that was cut got a response")
	}
}

func TestServeLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("serve", func(t *testing.T) {
		e := one(t, rawBackend(t, answering(ok)))
		for range 10 {
			c := dial(t, e)
			c.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n")
			c.response("GET")
		}
	})
	wait(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestListenNamesTheAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	g := New(Options{Addresses: []string{"127.0.0.1:0", addr}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err := g.Listen(); err == nil || !strings.Contains(err.Error(), "listen for HTTP on "+addr) {
		t.Errorf("Listen = %v, want an error that names %s", err, addr)
	}
	if n := len(g.Addrs()); n != 0 {
		t.Errorf("%d listeners stayed open", n)
	}
	g = New(Options{TLSAddresses: []string{addr}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err := g.Listen(); err == nil || !strings.Contains(err.Error(), "listen for HTTPS on "+addr) {
		t.Errorf("Listen = %v, want an error that names %s", err, addr)
	}
}

// A scarce is a listener that has run out of files for a while.
type scarce struct {
	net.Listener
	failures atomic.Int32 // to come
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, syscall.EMFILE
	}
	return l.Listener.Accept()
}

// Accepting goes on after an error, and the log does not fill up with them.
func TestAcceptErrors(t *testing.T) {
	const failures = 5
	var log lines
	e := start(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil)),
		Listen: func(_ context.Context, network, address string) (net.Listener, error) {
			l, err := net.Listen(network, address)
			scarce := &scarce{Listener: l}
			scarce.failures.Store(failures)
			return scarce, err
		}})
	e.serve(t, map[string][]string{" /": {rawBackend(t, answering(ok))}})
	c := dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, body := c.response("GET"); body != "ok" {
		t.Errorf("after the errors: %q, want ok", body)
	}
	if n := e.metric(t, "sallyport_http_accept_errors_total"); n != failures {
		t.Errorf("counted %v errors, want %d", n, failures)
	}
	if n := log.count("accept failed"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

// lines keeps what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// A panic where nobody can be answered ends its connection and no other.
func TestPanicOutsideOfAHandler(t *testing.T) {
	var log lines
	e := start(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	received := e.server.HeaderReceived
	e.server.HeaderReceived = func(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
		if len(h.Peek("X-Panic")) > 0 {
			panic("as asked for")
		}
		return received(h)
	}
	e.serve(t, map[string][]string{" /": {rawBackend(t, answering(ok))}})
	other, c := dial(t, e), dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\nX-Panic: 1\r\n\r\n")
	if rest, _ := c.rest(); rest != "" {
		t.Errorf("got %q, want nothing", rest)
	}
	other.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if _, body := other.response("GET"); body != "ok" {
		t.Errorf("another connection got %q, want ok", body)
	}
	wait(t, "the connections are closed", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
	if n := log.count("connection panicked"); n != 1 {
		t.Errorf("%d panics in the log, want 1", n)
	}
}

func TestPanicIsAnswered(t *testing.T) {
	e := one(t, closedAddr(t))
	broken := *e.state.Load()
	broken.pools = nil // a request that finds no pool for its endpoint panics
	e.state.Store(&broken)
	c := dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, body := c.response("GET"); resp.StatusCode != 500 || strings.Contains(body, "nil") {
		t.Errorf("got %d %q, want 500 without internals", resp.StatusCode, body)
	}
	if n := e.metric(t, "sallyport_http_request_errors_total", "panic"); n != 1 {
		t.Errorf("counted %v panics, want 1", n)
	}
	if n := e.metric(t, "sallyport_http_requests_in_flight"); n != 0 {
		t.Errorf("%v requests in flight, want 0", n)
	}
	e.serve(t, map[string][]string{" /": {rawBackend(t, answering(ok))}})
	c = dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, body := c.response("GET"); body != "ok" {
		t.Errorf("after a panic: %q, want ok", body)
	}
}
