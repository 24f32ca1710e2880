package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

// An edge is a running gateway with what a test needs to talk to it.
type edge struct {
	*Gateway
	addr     string
	tlsAddr  string // the first of Options.TLSAddresses, if there is one
	registry *prometheus.Registry
	stop     func() // ends Serve and waits for it; may be called twice
}

// start runs a gateway on a loopback port until the test ends.
func start(t testing.TB, o Options) *edge {
	t.Helper()
	registry := prometheus.NewRegistry()
	o.Metrics = registry
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Addresses == nil {
		o.Addresses = []string{"127.0.0.1:0"}
	}
	g := New(o)
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	addrs := g.Addrs()
	go func() { done <- g.Serve(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	t.Cleanup(stop)
	e := &edge{Gateway: g, addr: addrs[0].String(), registry: registry, stop: stop}
	if len(addrs) > len(o.Addresses) {
		e.tlsAddr = addrs[len(o.Addresses)].String()
	}
	return e
}

// serve gives the edge routes, each as "host path" and the addresses behind it.
func (e *edge) serve(t testing.TB, routes map[string][]string) {
	t.Helper()
	if err := e.Reconcile(t.Context(), snapshot(t, routes)); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t testing.TB, routes map[string][]string) *model.Snapshot {
	t.Helper()
	s := new(model.Snapshot)
	for where, addrs := range routes {
		host, path, _ := strings.Cut(where, " ")
		ref := model.ObjectRef{Kind: "Service", Name: fmt.Sprintf("s%d", len(s.Services))}
		port := model.ServicePort{Protocol: model.TCP, Port: 80}
		for _, a := range addrs {
			port.Destinations = append(port.Destinations, model.Destination{Addr: netip.MustParseAddrPort(a)})
		}
		s.Services = append(s.Services, model.Service{Ref: ref, Ports: []model.ServicePort{port}})
		s.Routes = append(s.Routes, model.Route{Host: host, Path: path, Match: model.MatchPrefix,
			Backends: []model.Backend{{Service: ref, Port: 80, Weight: 1}}})
	}
	return s
}

// one starts a gateway that sends everything to addr.
func one(t testing.TB, addr string) *edge {
	t.Helper()
	e := start(t, Options{})
	e.serve(t, map[string][]string{" /": {addr}})
	return e
}

// httpBackend starts a net/http server and returns its address.
func httpBackend(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// rawBackend starts a server that calls handle for each connection, and returns its address.
func rawBackend(t testing.TB, handle func(c net.Conn, br *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			conns.Go(func() {
				defer c.Close()
				handle(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		conns.Wait()
	})
	return l.Addr().String()
}

// readBlock reads a header block with its first line and the empty line.
func readBlock(br *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := br.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

// answering returns a backend connection handler that answers each request without body with the response.
func answering(response string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, br *bufio.Reader) {
		for {
			if _, err := readBlock(br); err != nil {
				return
			}
			if _, err := io.WriteString(c, response); err != nil {
				return
			}
		}
	}
}

// closedAddr returns an address where nothing listens.
func closedAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A client is a raw client connection.
type client struct {
	t testing.TB
	duplex
	br *bufio.Reader
}

func dial(t testing.TB, e *edge) *client {
	t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t, c.(duplex), bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("send %q: %v", s, err)
	}
}

// response reads a response and its body to a request with the method.
func (c *client) response(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("read response: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read body after %q: %v", body, err)
	}
	return resp, string(body)
}

// rest reads to the end of the connection.
func (c *client) rest() (string, error) {
	b, err := io.ReadAll(c.br)
	return string(b), err
}

// wait polls until the condition holds.
func wait(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		timer := time.NewTimer(time.Millisecond)
		<-timer.C
	}
}

// metric returns the value of a counter or gauge, summed over the label values that contain all of labels.
func (e *edge) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		found = true
		for _, m := range f.GetMetric() {
			text := fmt.Sprint(m.GetLabel())
			match := true
			for _, l := range labels {
				match = match && strings.Contains(text, `"`+l+`"`)
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	if !found {
		t.Fatalf("no metric %s", name)
	}
	return sum
}

// readFull fills p.
func (c *client) readFull(p []byte) {
	c.t.Helper()
	if n, err := io.ReadFull(c.br, p); err != nil {
		c.t.Fatalf("read %d bytes, %.100q: %v", n, p[:n], err)
	}
}
