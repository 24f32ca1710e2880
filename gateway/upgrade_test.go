package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

const (
	switching  = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nupgrade: Chat\r\nSec-WebSocket-Accept: k\r\nX-A: 1\r\n\r\n"
	askForChat = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: chat\r\n\r\n"
)

// overBoth runs the test for a client in clear and for one over TLS, of an edge that sends everything to addr.
func overBoth(t *testing.T, o Options, addr string, test func(t *testing.T, e *edge, c *client)) {
	t.Helper()
	t.Run("clear", func(t *testing.T) {
		e, _ := secure(t, o, addr)
		test(t, e, dial(t, e))
	})
	t.Run("tls", func(t *testing.T) {
		e, a := secure(t, o, addr)
		test(t, e, dialTLS(t, e, a.client("shop.example.com")))
	})
}

// upgraded reads the header of a 101 and returns it.
func (c *client) upgraded() string {
	c.t.Helper()
	head, err := readBlock(c.br)
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
		c.t.Fatalf("got %q, %v, want a 101", head, err)
	}
	return head
}

// Nothing is lost that either side sends on the heels of its header, and the end of each direction is relayed while the
// other goes on.
func TestUpgrade(t *testing.T) {
	heads := make(chan string, 1)
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		head, _ := readBlock(br)
		heads <- head
		io.WriteString(c, switching+"early news")
		got, err := io.ReadAll(br)
		fmt.Fprintf(c, "after the end: %s, %v", got, err)
	})
	overBoth(t, Options{}, addr, func(t *testing.T, e *edge, c *client) {
		c.send(askForChat + "early question")
		if head := <-heads; !strings.HasSuffix(head, "\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n") {
			t.Errorf("the endpoint was sent %q", head)
		}
		want := "HTTP/1.1 101 Switching Protocols\r\nX-A: 1\r\nSec-WebSocket-Accept: k\r\nConnection: Upgrade\r\nUpgrade: Chat\r\n\r\n"
		if head := c.upgraded(); head != want {
			t.Errorf("the client was sent\n%q, want\n%q", head, want)
		}
		got := make([]byte, len("early news"))
		if c.readFull(got); string(got) != "early news" {
			t.Errorf("the client was sent %q, want the early news", got)
		}
		if n := e.metric(t, "sallyport_http_upgraded_connections"); n != 1 {
			t.Errorf("%v upgraded connections, want 1", n)
		}
		c.send(", late question")
		c.CloseWrite()
		if got, err := c.rest(); got != "after the end: early question, late question, <nil>" || err != nil {
			t.Errorf("then %q, %v", got, err)
		}
		wait(t, "the connection is closed", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
		for _, gauge := range []string{"sallyport_http_upgraded_connections", "sallyport_http_requests_in_flight"} {
			if n := e.metric(t, gauge); n != 0 {
				t.Errorf("%s is %v, want 0", gauge, n)
			}
		}
		for p, pool := range e.state.Load().pools {
			if p.InFlight() != 0 || len(pool.idle) != 0 {
				t.Errorf("%d in flight and %d idle at the endpoint, want none", p.InFlight(), len(pool.idle))
			}
		}
	})
}

// What is not an upgrade that can be passed on is an ordinary request.
func TestUpgradesThatAreNotPassedOn(t *testing.T) {
	for _, tt := range []struct{ name, request string }{
		{"of HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"},
		{"not named by Connection", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"},
		{"named, but absent", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\r\n"},
		{"to nothing", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: \r\n\r\n"},
		{"twice", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n\r\n"},
		{"with a body", "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi"},
		{"with a chunked body", "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"by HEAD", "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"},
		{"to h2c", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: H2C\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"},
		{"to h2c, or else", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n"},
		{"to TLS", "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n"},
		{"to another HTTP", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: HTTP/2.0\r\n\r\n"},
		{"to no token", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: web socket\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, heads := recorder(t)
			c := dial(t, one(t, addr))
			c.send(tt.request)
			method, _, _ := strings.Cut(tt.request, " ")
			if resp, _ := c.response(method); resp.StatusCode != 200 {
				t.Errorf("answered %d, want 200", resp.StatusCode)
			}
			if head := strings.ToLower(<-heads); strings.Contains(head, "upgrade") || strings.Contains(head, "http2-settings") {
				t.Errorf("the endpoint was sent %q", head)
			}
		})
	}
}

// An endpoint need not agree, and then nothing has changed for either connection.
func TestDeclinedUpgrade(t *testing.T) {
	overBoth(t, Options{}, rawBackend(t, answering(ok)), func(t *testing.T, e *edge, c *client) {
		for range 3 {
			c.send(askForChat)
			if resp, body := c.response("GET"); resp.StatusCode != 200 || body != "ok" {
				t.Errorf("%d %q, want 200 ok", resp.StatusCode, body)
			}
		}
		if n := e.metric(t, "sallyport_http_upstream_connects_total", "new"); n != 1 {
			t.Errorf("%v connections to the endpoint, want 1", n)
		}
	})
}

func TestWebSocket(t *testing.T) {
	addr := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, message, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), kind, message) != nil {
				return
			}
		}
	})
	e, a := secure(t, Options{}, addr)
	secured := &http.Client{Transport: &http.Transport{TLSClientConfig: a.client("shop.example.com")}}
	for url, client := range map[string]*http.Client{"ws://" + e.addr: http.DefaultClient, "wss://" + e.tlsAddr: secured} {
		c, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{HTTPClient: client, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for _, size := range []int{0, 1, 125, 126, 70_000, 4 << 20} {
			message := bytes.Repeat([]byte("x"), size)
			if err := c.Write(t.Context(), websocket.MessageBinary, message); err != nil {
				t.Fatalf("%s: %d bytes: %v", url, size, err)
			}
			if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, message) {
				t.Fatalf("%s: %d bytes came back as %d, %v", url, size, len(got), err)
			}
		}
		if err := c.Close(websocket.StatusNormalClosure, "bye"); err != nil {
			t.Errorf("%s: close: %v", url, err)
		}
	}
}

// Much is moved in both directions at a time, and all of it arrives.
func TestTunnelInBulk(t *testing.T) {
	const size = 24 << 20
	blob := make([]byte, size)
	for i := range blob {
		blob[i] = byte(i * i >> 7)
	}
	want := sha256.Sum256(blob)
	sums := make(chan [32]byte, 1)
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		var sending sync.WaitGroup
		sending.Go(func() { c.Write(blob); c.(duplex).CloseWrite() })
		got, _ := io.ReadAll(br)
		sums <- sha256.Sum256(got)
		sending.Wait()
	})
	overBoth(t, Options{}, addr, func(t *testing.T, _ *edge, c *client) {
		c.send(askForChat)
		c.upgraded()
		var sending sync.WaitGroup
		sending.Go(func() { c.Write(blob); c.CloseWrite() })
		got, err := c.rest()
		if sha256.Sum256([]byte(got)) != want || err != nil {
			t.Errorf("the client got %d bytes of %d, %v", len(got), size, err)
		}
		sending.Wait()
		if <-sums != want {
			t.Error("the endpoint did not get what was sent")
		}
	})
}

// A dribble passes what is written on in small pieces, so that TLS records come in parts.
type dribble struct{ net.Conn }

func (c dribble) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += 700 {
		if _, err := c.Conn.Write(p[n:min(n+700, len(p))]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// Every size of message arrives at once, and none waits for the next.
func TestTunnelOfMessages(t *testing.T) {
	e, a := secure(t, Options{}, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		io.Copy(c, br)
	}))
	socket, err := net.Dial("tcp", e.tlsAddr)
	if err != nil {
		t.Fatal(err)
	}
	secured := tls.Client(dribble{socket}, a.client("shop.example.com"))
	overTLS := &client{t, secured, bufio.NewReader(secured)}
	defer secured.Close()
	for _, c := range []*client{dial(t, e), overTLS} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		c.send(askForChat)
		c.upgraded()
		for _, size := range []int{1, smallRead - 1, smallRead, smallRead + 1, 2 * smallRead, 16 << 10, 16<<10 + smallRead, 33 << 10, 300_000} {
			message := make([]byte, size)
			for i := range message {
				message[i] = byte(i * size >> 3)
			}
			got := make([]byte, size)
			go c.send(string(message))
			if c.readFull(got); !bytes.Equal(got, message) {
				t.Fatalf("a message of %d bytes came back as another", size)
			}
		}
	}
}

// pipes returns how many open files of the process are ends of pipes.
func pipes(t *testing.T) (n int) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// A tunnel that has moved much does not hold on to the pipe that the kernel moved it through.
func TestIdleTunnelHoldsNoPipe(t *testing.T) {
	e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		io.Copy(struct{ io.Writer }{c}, br) // without a pipe
	}))
	before, bulk := pipes(t), strings.Repeat("x", 1<<20)
	for range 20 {
		c := dial(t, e)
		c.send(askForChat)
		c.upgraded()
		go io.WriteString(c, bulk)
		c.readFull(make([]byte, len(bulk)))
	}
	wait(t, "no pipe is held", func() bool {
		runtime.GC() // which ends those that are kept for the next
		return pipes(t) <= before
	})
}

// Most upgraded connections are idle most of the time, and there may be many.
func TestIdleTunnelHoldsLittle(t *testing.T) {
	const tunnels = 100
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		io.Copy(c, br)
	})
	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // the first leaves what is in pools
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	overBoth(t, Options{}, addr, func(t *testing.T, e *edge, c *client) {
		limit, connect := 20<<10, func() *client { return dial(t, e) } // bytes, with those of client and endpoint
		if _, ok := c.duplex.(*tls.Conn); ok {
			limit, connect = 36<<10, func() *client { return dialTLS(t, e, &tls.Config{InsecureSkipVerify: true}) }
		}
		clients, before := []*client{c}, heap()
		for len(clients) < tunnels {
			clients = append(clients, connect())
		}
		for _, c := range clients {
			c.send(askForChat)
			c.upgraded()
		}
		wait(t, fmt.Sprintf("a tunnel holds no more than %d bytes", limit), func() bool { return (heap()-before)/tunnels <= limit })
		runtime.KeepAlive(clients)
	})
}

// Silence in both directions ends a tunnel, and talk in one keeps it.
func TestTunnelIdleTimeout(t *testing.T) {
	ended := make(chan error, 1)
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		_, err := io.Copy(io.Discard, br)
		ended <- err
	})
	overBoth(t, Options{UpgradeIdleTimeout: time.Second}, addr, func(t *testing.T, e *edge, c *client) {
		c.send(askForChat)
		c.upgraded()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for range 30 {
			<-tick.C
			c.send("ping")
		}
		if n := e.metric(t, "sallyport_http_upgraded_connections"); n != 1 {
			t.Fatal("a tunnel that is not silent was cut")
		}
		if _, err := c.br.ReadByte(); err == nil || err == io.EOF {
			t.Errorf("the client saw %v, want an error that is no end", err)
		}
		if err := <-ended; err == nil {
			t.Error("the endpoint saw an end, want an error")
		}
	})
}

// Between the end of a tunnel and that of its connection the watcher may look once more.
func TestTunnelThatHasEndedIsNotCut(t *testing.T) {
	e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		io.Copy(c, br)
	}))
	c := dial(t, e)
	c.send(askForChat)
	c.upgraded()
	served := e.connections()[0]
	served.detach()
	served.check(e.clock.now() + 2*e.limits.upgrade)
	c.send("echo")
	got := make([]byte, 4)
	if c.readFull(got); string(got) != "echo" {
		t.Errorf("got %q, want echo", got)
	}
}

// A tunnel outlives its route and its endpoint.
func TestTunnelSurvivesReconcile(t *testing.T) {
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		io.Copy(c, br)
	})
	overBoth(t, Options{}, addr, func(t *testing.T, e *edge, c *client) {
		c.send(askForChat)
		c.upgraded()
		e.serve(t, nil)
		got := make([]byte, 4)
		c.send("echo")
		if c.readFull(got); string(got) != "echo" {
			t.Errorf("got %q, want echo", got)
		}
	})
}

// What one side breaks off does not look like an end to the other.
func TestTunnelThatBreaks(t *testing.T) {
	saw := make(chan error, 1)
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		head, _ := readBlock(br)
		io.WriteString(c, switching)
		if strings.HasPrefix(head, "GET /break") {
			br.ReadByte()
			c.(*net.TCPConn).SetLinger(0)
			return
		}
		br.ReadByte()
		_, err := io.Copy(io.Discard, br)
		saw <- err
	})
	overBoth(t, Options{}, addr, func(t *testing.T, e *edge, c *client) {
		c.send(strings.Replace(askForChat, "/chat", "/break", 1))
		c.upgraded()
		c.send("x")
		if _, err := c.br.ReadByte(); err == nil || err == io.EOF {
			t.Errorf("the endpoint broke off, and the client saw %v", err)
		}
		wait(t, "the connection is closed", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
	})
	overBoth(t, Options{}, addr, func(t *testing.T, e *edge, c *client) {
		c.send(askForChat)
		c.upgraded()
		c.send("x")
		socket, ok := c.duplex.(*net.TCPConn)
		if !ok {
			socket = c.duplex.(*tls.Conn).NetConn().(*net.TCPConn)
		}
		socket.SetLinger(0)
		socket.Close()
		if err := <-saw; err == nil {
			t.Error("the client broke off, and the endpoint saw an end")
		}
		wait(t, "the connection is closed", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
	})
}

// A tunnel has DrainTime to end by itself. Then both sides see that it was cut, and no frame is made up.
func TestDrainCutsTunnels(t *testing.T) {
	saw := make(chan error, 1)
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		readBlock(br)
		io.WriteString(c, switching)
		_, err := io.Copy(c, br)
		saw <- err
	})
	overBoth(t, Options{DrainTime: 2 * time.Second}, addr, func(t *testing.T, e *edge, c *client) {
		c.send(askForChat)
		c.upgraded()
		stopped := make(chan bool)
		go func() { e.stop(); close(stopped) }()
		wait(t, "draining began", e.draining.Load)
		got := make([]byte, 4)
		c.send("echo")
		if c.readFull(got); string(got) != "echo" {
			t.Errorf("while draining: got %q, want echo", got)
		}
		if b, err := c.br.ReadByte(); err == nil || err == io.EOF {
			t.Errorf("then the client saw %q, %v, want an error", b, err)
		}
		if err := <-saw; err == nil {
			t.Error("then the endpoint saw an end, want an error")
		}
		<-stopped
	})
}
