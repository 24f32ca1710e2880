package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"sallyport/watcher/model"
)

const browserRequest = "GET /api/v1/path-7/items/42?page=3 HTTP/1.1\r\nHost: Host-7.example.com\r\nUser-Agent: Mozilla/5.0 (X11)\r\n" +
	"Accept: text/html,application/xhtml+xml\r\nAccept-Language: en\r\nAccept-Encoding: gzip, br\r\n" +
	"Connection: keep-alive\r\nCookie: session=0123456789abcdef\r\nCache-Control: max-age=0\r\n\r\n"

// parsed returns the request's header as fasthttp hands it over.
func parsed(t testing.TB, request string) *fasthttp.RequestHeader {
	t.Helper()
	h := new(fasthttp.RequestHeader)
	if err := h.Read(bufio.NewReader(strings.NewReader(request))); err != nil {
		t.Fatal(err)
	}
	return h
}

// manyHosts returns a snapshot with a route for each of n hosts, all to addr.
func manyHosts(n int, addr string) *model.Snapshot {
	ref := model.ObjectRef{Kind: "Service", Name: "s"}
	s := &model.Snapshot{Services: []model.Service{{Ref: ref, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80,
		Destinations: []model.Destination{{Addr: netip.MustParseAddrPort(addr)}}}}}}}
	for i := range n {
		s.Routes = append(s.Routes, model.Route{Host: fmt.Sprintf("host-%d.example.com", i), Path: "/api", Match: model.MatchPrefix,
			Backends: []model.Backend{{Service: ref, Port: 80, Weight: 1}}})
	}
	return s
}

// What the gateway does between fasthttp's parser and the socket does not allocate.
func TestRequestPathDoesNotAllocate(t *testing.T) {
	e := start(t, Options{})
	if err := e.Reconcile(t.Context(), manyHosts(100, "127.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	x := &exchange{g: e.Gateway, c: &conn{peerText: "192.0.2.1", localPort: "80", scheme: "http"}, ctx: new(fasthttp.RequestCtx)}
	parsed(t, browserRequest).CopyTo(&x.ctx.Request.Header)
	if err := x.ctx.Request.Header.Read(bufio.NewReader(strings.NewReader(browserRequest))); err != nil {
		t.Fatal(err)
	}
	var head []byte
	n := testing.AllocsPerRun(100, func() {
		_, picker, problem := x.route()
		if problem != nil {
			t.Fatal(problem.text)
		}
		if picker.Pick(x.tried) == nil {
			t.Fatal("no endpoint")
		}
		head = x.appendHead(head[:0])
	})
	if n != 0 {
		t.Errorf("a request allocates %v times, want 0", n)
	}
	if !strings.HasPrefix(string(head), "GET /api/v1/path-7/items/42?page=3 HTTP/1.1\r\nHost: host-7.example.com\r\nUser-Agent: ") {
		t.Errorf("header block %q", head)
	}
}

// BenchmarkRequest is all that happens to a request but parsing, reading and writing.
func BenchmarkRequest(b *testing.B) {
	for _, hosts := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			e := start(b, Options{})
			if err := e.Reconcile(b.Context(), manyHosts(max(hosts, 8), "127.0.0.1:1")); err != nil {
				b.Fatal(err)
			}
			x := &exchange{g: e.Gateway, c: &conn{peerText: "192.0.2.1", localPort: "80", scheme: "http"}, ctx: new(fasthttp.RequestCtx)}
			if err := x.ctx.Request.Header.Read(bufio.NewReader(strings.NewReader(browserRequest))); err != nil {
				b.Fatal(err)
			}
			var head []byte
			b.ReportAllocs()
			for b.Loop() {
				if _, picker, problem := x.route(); problem != nil || picker.Pick(x.tried) == nil {
					b.Fatal("not routed")
				}
				head = x.appendHead(head[:0])
			}
		})
	}
}

// BenchmarkRoundTrip is a request through the gateway, with client and endpoint in the same process. All that
// allocates in it is counted, and neither of those two does.
func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{128, 16 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			response := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: x\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"+
				"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n", size) + strings.Repeat("x", size))
			addr := rawBackend(b, func(c net.Conn, br *bufio.Reader) {
				for {
					for {
						line, err := br.ReadSlice('\n')
						if err != nil {
							return
						}
						if len(line) == 2 {
							break
						}
					}
					if _, err := c.Write(response); err != nil {
						return
					}
				}
			})
			e := start(b, Options{})
			if err := e.Reconcile(b.Context(), manyHosts(10, addr)); err != nil {
				b.Fatal(err)
			}
			c, err := net.Dial("tcp", e.addr)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			request := []byte(browserRequest)
			got := make([]byte, len(response))
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
