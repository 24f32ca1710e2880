package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Defect 2: a connection that an endpoint has switched to another protocol never serves another request.
func TestUnrequestedUpgradeIsRefused(t *testing.T) {
	e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		head, err := readBlock(br)
		if err != nil {
			return
		}
		if strings.HasPrefix(head, "GET /up") {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"+ok)
			io.Copy(io.Discard, br)
			return
		}
		io.WriteString(c, ok)
	}))
	c := dial(t, e)
	for _, fields := range []string{"", "Connection: Upgrade\r\nUpgrade: websocket\r\n", "Upgrade: x\r\n"} {
		c.send("GET /up HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n")
		if resp, _ := c.response("GET"); resp.StatusCode != 502 {
			t.Errorf("%q: 101 was relayed as %d, want 502", fields, resp.StatusCode)
		}
	}
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, body := c.response("GET"); resp.StatusCode != 200 || body != "ok" {
		t.Errorf("then %d %q, want 200 ok", resp.StatusCode, body)
	}
	if n := e.metric(t, "sallyport_http_upstream_connects_total", "new"); n != 4 {
		t.Errorf("%v connections to the endpoint, want 4", n)
	}
}

// Defect 12: what an endpoint sends unasked is not taken for the answer to the next request.
func TestUnsolicitedBytesAreNotAnAnswer(t *testing.T) {
	for _, tt := range []struct {
		name string
		late bool
	}{{"with the response", false}, {"later", true}} {
		t.Run(tt.name, func(t *testing.T) {
			sent := make(chan bool, 10)
			e := start(t, Options{BackendIdleTimeout: time.Hour})
			e.serve(t, map[string][]string{" /": {rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				for {
					if _, err := readBlock(br); err != nil {
						return
					}
					const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
					if !tt.late {
						io.WriteString(c, ok+poison)
						continue
					}
					io.WriteString(c, ok)
					sent <- true
					sent <- true // not before the client has its answer
					io.WriteString(c, poison)
				}
			})}})
			c := dial(t, e)
			for range 3 {
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if _, body := c.response("GET"); body != "ok" {
					t.Errorf("body %q, want ok", body)
				}
				if tt.late {
					<-sent
					<-sent
					idle(t, e, 3)
				}
			}
		})
	}
}

// idle waits until the pooled connections have been idle for some ticks.
func idle(t *testing.T, e *edge, ticks uint32) {
	t.Helper()
	begin := e.clock.now()
	wait(t, "the clock moves", func() bool { return e.clock.now()-begin > ticks })
}

// Defect 14: a connection that the endpoint closed while it was idle costs no request, and what may not be sent twice
// is not.
func TestStaleConnections(t *testing.T) {
	for _, tt := range []struct {
		name, request string
		code          int
	}{
		{"GET", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200},
		{"PUT with a small body", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", 200},
		{"POST", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", 502},
		{"POST with a key", "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: 1\r\nContent-Length: 2\r\n\r\nhi", 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var conns atomic.Int32
			e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				first := conns.Add(1) == 1
				readBlock(br)
				if strings.Contains(tt.request, "hi") && !first {
					io.ReadFull(br, make([]byte, 2))
				}
				io.WriteString(c, ok)
				readBlock(br) // the first connection is closed when the next request comes
			}))
			c := dial(t, e)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			c.response("GET")
			c.send(tt.request)
			if resp, body := c.response("GET"); resp.StatusCode != tt.code {
				t.Errorf("got %d %q, want %d", resp.StatusCode, body, tt.code)
			}
			want := int32(2)
			if tt.code != 200 {
				want = 1
			}
			if n := conns.Load(); n != want {
				t.Errorf("%d connections to the endpoint, want %d", n, want)
			}
		})
	}
}

func TestClosedIdleConnectionsAreNotUsed(t *testing.T) {
	closed := make(chan bool, 10)
	e := start(t, Options{BackendIdleTimeout: time.Hour})
	e.serve(t, map[string][]string{" /": {rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, ok)
		c.Close()
		closed <- true
	})}})
	c := dial(t, e)
	for range 3 {
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n") // not to be sent twice
		if resp, body := c.response("POST"); resp.StatusCode != 200 {
			t.Errorf("got %d %q, want 200", resp.StatusCode, body)
		}
		<-closed
		idle(t, e, 3)
	}
}

func TestIdleConnectionsExpire(t *testing.T) {
	gone := make(chan bool)
	e := start(t, Options{BackendIdleTimeout: 20 * time.Millisecond})
	e.serve(t, map[string][]string{" /": {rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, ok)
		readBlock(br)
		close(gone)
	})}})
	c := dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.response("GET")
	<-gone
}

func TestRetriesAnotherEndpoint(t *testing.T) {
	e := start(t, Options{})
	e.serve(t, map[string][]string{" /": {closedAddr(t), rawBackend(t, answering(ok))}})
	c := dial(t, e)
	for i := range 10 {
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
		if resp, body := c.response("POST"); resp.StatusCode != 200 {
			t.Fatalf("request %d: %d %q, want 200", i, resp.StatusCode, body)
		}
	}
	if n := e.metric(t, "sallyport_http_retries_total"); n != 5 {
		t.Errorf("%v retries for 10 requests to two endpoints of which one is dead, want 5", n)
	}
}

// An endpoint that shuts down closes its idle connections and then refuses new ones. That costs no request.
func TestEndpointThatShutsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan bool)
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		br := bufio.NewReader(c)
		readBlock(br)
		io.WriteString(c, ok)
		l.Close()
		readBlock(br) // is taken and not answered
		c.Close()
	}()
	e := start(t, Options{})
	e.serve(t, map[string][]string{" /": {l.Addr().String()}})
	c := dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.response("GET")
	e.serve(t, map[string][]string{" /": {l.Addr().String(), rawBackend(t, answering(ok))}})
	for i := range 4 {
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.response("GET"); resp.StatusCode != 200 {
			t.Errorf("request %d: %d %q, want 200", i, resp.StatusCode, body)
		}
	}
	<-served
}

// What cannot be sent twice is not sent on a connection that is known to be closed, however short the time.
func TestConnectionsAreLookedAtForWhatCannotBeRepeated(t *testing.T) {
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
	} {
		closed := make(chan bool, 10)
		e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
			head, _ := readBlock(br)
			readWholeBody(head, br)
			io.WriteString(c, ok)
			c.Close()
			closed <- true
		}))
		c := dial(t, e)
		for range 10 {
			c.send(request)
			if resp, body := c.response("POST"); resp.StatusCode != 200 {
				t.Fatalf("%.4s: %d %q, want 200", request, resp.StatusCode, body)
			}
			<-closed
		}
	}
}

// Some endpoints send a body where none may be. It is not the answer to the next request.
func TestBodyThatMustNotBe(t *testing.T) {
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	sent, proceed := make(chan bool, 10), make(chan bool)
	defer close(proceed)
	c := dial(t, one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readBlock(br)
			if err != nil {
				return
			}
			io.WriteString(c, ok[:len(ok)-len("ok")])
			if !strings.HasPrefix(head, "HEAD") {
				io.WriteString(c, "ok")
				continue
			}
			<-proceed
			io.WriteString(c, poison)
			sent <- true
		}
	})))
	for range 5 {
		c.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
		c.response("HEAD")
		proceed <- true
		<-sent
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, body := c.response("GET"); body != "ok" {
			t.Fatalf("body %q, want ok", body)
		}
	}
}

// Endpoints do not share one range of local ports: the kernel tells connections apart by both ends.
func TestLocalPortsAreNotShared(t *testing.T) {
	const ipLocalPortRange = 51 // IP_LOCAL_PORT_RANGE of ip(7), since Linux 6.3
	_, port, _ := strings.Cut(closedAddr(t), ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, Options{})
	for range 2 {
		p := newPool(e.Gateway, netip.MustParseAddrPort(rawBackend(t, answering(ok))))
		p.dialer.Control = func(_, _ string, raw syscall.RawConn) error {
			var err error
			raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, ipLocalPortRange, n<<16|n)
			})
			return err
		}
		up, err := p.get(connNew)
		if errors.Is(err, syscall.ENOPROTOOPT) {
			t.Skip("this kernel cannot narrow the range of local ports of one socket")
		}
		if err != nil {
			t.Fatal(err)
		}
		defer up.tcp.Close()
	}
}

// Never after a response has begun, never for a request that the endpoint may have acted on.
func TestDoesNotRetryWhatWasSent(t *testing.T) {
	for _, response := range []string{"", "HTTP/1.1 2", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
		strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 50), "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 20<<10) + "\r\n\r\n"} {
		t.Run(fmt.Sprintf("%.20q", response), func(t *testing.T) {
			var requests atomic.Int32
			e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				readBlock(br)
				requests.Add(1)
				io.WriteString(c, response)
			}))
			c := dial(t, e)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if resp, body := c.response("GET"); resp.StatusCode != 502 || !strings.Contains(body, "no valid response") {
				t.Errorf("got %d %q, want 502", resp.StatusCode, body)
			}
			if n := requests.Load(); n != 1 {
				t.Errorf("the endpoint was sent %d requests, want 1", n)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	silent := func(_ net.Conn, br *bufio.Reader) { io.Copy(io.Discard, br) }
	const short = 50 * time.Millisecond
	for _, tt := range []struct {
		name    string
		opt     Options
		backend func(net.Conn, *bufio.Reader)
		request string
		want    string // how the answer begins
	}{
		{"response's header", Options{ResponseTimeout: short}, silent,
			"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 504 "},
		{"response's header after an upload", Options{ResponseTimeout: short}, silent,
			"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "HTTP/1.1 504 "},
		{"request's header", Options{HeaderTimeout: short}, silent, "GET / HTTP/1.1\r\nHost:", "HTTP/1.1 408 "},
		{"first request", Options{HeaderTimeout: short}, silent, "", ""},
		{"small body", Options{HeaderTimeout: short}, silent,
			"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx", "HTTP/1.1 408 "},
		{"streamed body", Options{ReadTimeout: short}, silent,
			"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\nx", "HTTP/1.1 408 "},
		{"between requests", Options{IdleTimeout: short}, answering("HTTP/1.1 204 No Content\r\nServer: x\r\nDate: d\r\n\r\n"),
			"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 204 No Content\r\nServer: x\r\nDate: d\r\n\r\n"},
		{"response's body", Options{StreamTimeout: short}, func(c net.Conn, br *bufio.Reader) {
			readBlock(br)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx")
			io.Copy(io.Discard, br)
		}, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, tt.opt)
			e.serve(t, map[string][]string{" /": {rawBackend(t, tt.backend)}})
			c := dial(t, e)
			c.send(tt.request)
			if tt.want == "HTTP/1.1 504 " {
				if resp, _ := c.response("GET"); resp.StatusCode != 504 {
					t.Errorf("got %d, want 504", resp.StatusCode)
				}
				return // the connection stays
			}
			got, err := c.rest()
			if !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" || err != nil {
				t.Errorf("got %q, %v, want %q and the end", got, err, tt.want)
			}
		})
	}
}

// A header that comes drop by drop has to end in time.
func TestResponseTimeoutOfADrippingHeader(t *testing.T) {
	e := start(t, Options{ResponseTimeout: 100 * time.Millisecond})
	e.serve(t, map[string][]string{" /": {rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for range 20 {
			if _, err := io.WriteString(c, "X: y\r\n"); err != nil {
				return
			}
			idle(t, e, 1)
		}
		io.WriteString(c, "Content-Length: 0\r\n\r\n")
	})}})
	c := dial(t, e)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, _ := c.response("GET"); resp.StatusCode != 504 {
		t.Errorf("got %d, want 504", resp.StatusCode)
	}
}

// A client that takes its response slowly is not one that takes nothing.
func TestSlowClientIsNotCut(t *testing.T) {
	for _, head := range []string{"\r\n", "Content-Length: 100000000\r\n\r\n"} {
		t.Run(fmt.Sprintf("%.7q", head), func(t *testing.T) {
			t.Parallel()
			e := start(t, Options{WriteTimeout: time.Second})
			e.serve(t, map[string][]string{" /": {rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				readBlock(br)
				io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
				io.Copy(c, zeros{})
			})}})
			c := dial(t, e)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			piece := make([]byte, 40<<10)
			for range 25 {
				c.readFull(piece)
				idle(t, e, 1)
			}
		})
	}
}

// A client that takes nothing of its response is cut, and its endpoint freed.
func TestWriteTimeout(t *testing.T) {
	for _, head := range []string{"\r\n", "Content-Length: 100000000000\r\n\r\n"} {
		t.Run(fmt.Sprintf("%.7q", head), func(t *testing.T) {
			freed := make(chan bool)
			e := start(t, Options{WriteTimeout: 50 * time.Millisecond})
			e.serve(t, map[string][]string{" /": {rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				readBlock(br)
				io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head)
				io.Copy(c, zeros{}) // until the connection is cut
				close(freed)
			})}})
			c := dial(t, e)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			<-freed
		})
	}
}

// The same for a client that floods with requests and takes none of the answers.
func TestWriteTimeoutOfAnswers(t *testing.T) {
	e := start(t, Options{WriteTimeout: 50 * time.Millisecond})
	c := dial(t, e)
	flood := strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
	for {
		if _, err := io.WriteString(c, flood); err != nil {
			break
		}
	}
	wait(t, "the connection is gone", func() bool { return len(e.connections()) == 0 })
}

// Defect 13: it is not the client's fault if its endpoint dies while the client still sends.
func TestEndpointDiesDuringUpload(t *testing.T) {
	c := dial(t, one(t, rawBackend(t, func(_ net.Conn, br *bufio.Reader) { readBlock(br) })))
	c.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\nx")
	if resp, _ := c.response("PUT"); resp.StatusCode != 502 {
		t.Errorf("got %d, want 502", resp.StatusCode)
	}
}

// Defect 11: a client that leaves ends the work for it, while its endpoint thinks and while it streams.
func TestClientGoneCancelsTheRequest(t *testing.T) {
	for _, head := range []string{"", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"} {
		t.Run(fmt.Sprintf("%.8q", head), func(t *testing.T) {
			began, cancelled := make(chan bool), make(chan bool)
			e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				readBlock(br)
				io.WriteString(c, head)
				close(began)
				io.Copy(io.Discard, br)
				close(cancelled)
			}))
			c := dial(t, e)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			<-began
			if head != "" {
				c.readFull(make([]byte, 10))
			}
			c.Close()
			<-cancelled
		})
	}
}
