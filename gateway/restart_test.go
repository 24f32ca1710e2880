package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/watcher/model"
)

// inherited keeps the sockets of listeners, as a service manager does, and hands each out to whoever listens there.
type inherited map[string]*os.File

func (i inherited) listen(_ context.Context, network, address string) (net.Listener, error) {
	if f := i[address]; f != nil {
		return net.FileListener(f)
	}
	l, err := net.Listen(network, address)
	if err == nil {
		i[address], err = l.(*net.TCPListener).File()
	}
	return l, err
}

func (i inherited) close() {
	for _, f := range i {
		f.Close()
	}
}

// hammer sends requests, n on each connection, until done: it reports what fails.
func hammer(t *testing.T, n int, dial func() (net.Conn, error), done *atomic.Bool, served *atomic.Int64) {
	for !done.Load() && !t.Failed() {
		c, err := dial()
		if err != nil {
			t.Errorf("connect: %v", err)
			return
		}
		br := bufio.NewReader(c)
		for range n {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("response: %v, %v", resp, err)
				break
			}
			io.Copy(io.Discard, resp.Body)
			served.Add(1)
			if resp.Close || done.Load() {
				break
			}
		}
		c.Close()
	}
}

// patientBackend is an endpoint that also talks, and sends a download in so many pieces of 1,000 bytes, ten a second.
func patientBackend(t *testing.T, pieces int) string {
	t.Helper()
	return rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readBlock(br)
			switch {
			case err != nil:
				return
			case strings.HasPrefix(head, "GET /chat"):
				io.WriteString(c, switching)
				io.Copy(c, br)
				return
			case strings.HasPrefix(head, "GET /download"):
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", pieces*1000)
				tick := time.NewTicker(100 * time.Millisecond)
				for range pieces {
					<-tick.C
					c.Write(make([]byte, 1000))
				}
				tick.Stop()
			default:
				io.WriteString(c, ok)
			}
		}
	})
}

// A gateway ends while clients come, and another takes over its sockets after that. Nobody fails, not even those who
// download or talk at the time, and while they do new clients do not wait.
func TestRestartUnderLoad(t *testing.T) {
	const pieces = 30
	addr := patientBackend(t, pieces)
	sockets := inherited{}
	defer sockets.close()
	o := Options{Addresses: []string{"127.0.0.1:0"}, TLSAddresses: []string{"localhost:0"}, Listen: sockets.listen,
		DrainTime: time.Minute, Hold: time.Minute}
	a := newAuthority(t)
	s := snapshot(t, map[string][]string{" /": {addr}})
	s.Certificates = []model.Certificate{secret("web", a.issue(t, "shop.example.com"), "shop.example.com")}
	old := start(t, o)
	if err := old.Reconcile(t.Context(), s); err != nil {
		t.Fatal(err)
	}

	var done atomic.Bool
	var served atomic.Int64
	var clients sync.WaitGroup
	inClear := func() (net.Conn, error) { return net.Dial("tcp", old.addr) }
	config := a.client("shop.example.com")
	overTLS := func() (net.Conn, error) { return tls.Dial("tcp", old.tlsAddr, config) }
	for _, n := range []int{1, 20, 1 << 30} {
		clients.Go(func() { hammer(t, n, inClear, &done, &served) })
		clients.Go(func() { hammer(t, n, overTLS, &done, &served) })
	}
	chat, download := dialTLS(t, old, config), dial(t, old)
	chat.send(askForChat)
	chat.upgraded()
	download.send("GET /download HTTP/1.1\r\nHost: a\r\n\r\n")
	download.br.Peek(1)

	stopped := make(chan bool)
	go func() { old.stop(); close(stopped) }()
	wait(t, "the drain began", old.draining.Load)
	before := served.Load()
	if _, body := download.response("GET"); len(body) != pieces*1000 {
		t.Errorf("downloaded %d bytes, want %d", len(body), pieces*1000)
	}
	if n := served.Load() - before; n < 100 {
		t.Errorf("%d requests were served during the download, want many", n)
	}
	got := make([]byte, 4)
	chat.send("echo")
	if chat.readFull(got); string(got) != "echo" {
		t.Errorf("while draining: got %q, want echo", got)
	}
	chat.CloseWrite()
	if rest, err := chat.rest(); rest != "" || err != nil {
		t.Errorf("the end of the tunnel: %q, %v", rest, err)
	}
	<-stopped // although new clients have never ceased to come

	next := start(t, o)
	if err := next.Reconcile(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	before = served.Load()
	wait(t, "the successor serves", func() bool { return served.Load() > before+100 || t.Failed() })
	done.Store(true)
	clients.Wait()
}

// After DrainTime what was there before is cut, and a request that came in later is not.
func TestDrainTimeIsForWhatWasThereBefore(t *testing.T) {
	began, finish := make(chan string, 2), make(chan bool)
	addr := rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		head, err := readBlock(br)
		if err != nil {
			return
		}
		began <- head
		<-finish
		io.WriteString(c, ok)
	})
	sockets := inherited{}
	defer sockets.close()
	e := start(t, Options{Listen: sockets.listen, DrainTime: 2 * time.Second})
	e.serve(t, map[string][]string{" /": {addr}})
	before := dial(t, e)
	before.send("GET /before HTTP/1.1\r\nHost: a\r\n\r\n")
	<-began
	stopped := make(chan bool)
	go func() { e.stop(); close(stopped) }()
	wait(t, "the drain began", e.draining.Load)
	late := dial(t, e)
	late.send("GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
	<-began
	if b, err := before.br.ReadByte(); err == nil {
		t.Errorf("the request from before got %q, want to be cut", b)
	}
	wait(t, "nothing is accepted", e.closed.Load)
	close(finish)
	if resp, body := late.response("GET"); body != "ok" || !resp.Close {
		t.Errorf("the late request got %q, close %v, want ok and a close", body, resp.Close)
	}
	<-stopped
}

// Until the first snapshot clients wait, for as long as Hold says.
func TestHold(t *testing.T) {
	for _, tt := range []struct {
		name string
		hold time.Duration
		code int
	}{{"long enough", time.Hour, 200}, {"too short", time.Millisecond, 503}} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, Options{Hold: tt.hold})
			c := dial(t, e)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			if tt.code == 200 {
				e.serve(t, map[string][]string{" /": {rawBackend(t, answering(ok))}})
			}
			if resp, _ := c.response("GET"); resp.StatusCode != tt.code {
				t.Errorf("answered %d, want %d", resp.StatusCode, tt.code)
			}
		})
	}
	t.Run("ended first", func(t *testing.T) { start(t, Options{Hold: time.Hour}).stop() })
}
