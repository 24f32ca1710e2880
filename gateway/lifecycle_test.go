package gateway

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
