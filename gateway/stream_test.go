package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// Defect 8: what the endpoint sends is not held back, whatever says where the body ends.
func TestRelaysResponseAsItComes(t *testing.T) {
	for _, tt := range []struct{ name, head, first, rest string }{
		{"chunked", "Transfer-Encoding: chunked\r\n\r\n", "5\r\nfirst\r\n", "4\r\nlast\r\n0\r\n\r\n"},
		{"length", "Content-Length: 9\r\n\r\n", "first", "last"},
		{"close", "\r\n", "first", "last"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			step := make(chan bool)
			defer close(step)
			c := dial(t, one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				readBlock(br)
				for _, piece := range []string{"HTTP/1.1 200 OK\r\n" + tt.head, tt.first, tt.rest} {
					io.WriteString(c, piece)
					<-step
				}
			})))
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(c.br, nil) // before any byte of the body was sent
			if err != nil {
				t.Fatal(err)
			}
			step <- true
			first := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first" {
				t.Fatalf("read %q, %v before the rest was sent, want first", first, err)
			}
			step <- true
			step <- true
			if rest, err := io.ReadAll(resp.Body); string(rest) != "last" || err != nil {
				t.Errorf("then %q, %v, want last", rest, err)
			}
		})
	}
}

// A chunked response that comes in one piece leaves in one.
func TestWholeChunkedResponseGetsALength(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, tt := range []struct{ name, chunks, want string }{
		{"one", "5\r\nhello\r\n0\r\n\r\n", "hello"},
		{"many", "1\r\na\r\n2;x\r\nbc\r\n000\r\n\r\n", "abc"},
		{"none", "0\r\n\r\n", ""},
		{"looks like two", "10\r\nhello\r\n0\r\n\r\nabcd\r\n0\r\n\r\n", "hello\r\n0\r\n\r\nabcd"},
		{"long", "3800\r\n" + strings.Repeat("x", 0x3800) + "\r\n0\r\n\r\n", strings.Repeat("x", 0x3800)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := one(t, rawBackend(t, answering(head+tt.chunks)))
			c := dial(t, e)
			for range 2 {
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp, body := c.response("GET"); resp.ContentLength != int64(len(tt.want)) || body != tt.want {
					t.Errorf("length %d body %q, want %q", resp.ContentLength, body, tt.want)
				}
			}
			if n := e.metric(t, "sallyport_http_upstream_connects_total", "new"); n != 1 {
				t.Errorf("%v connections to the endpoint, want 1", n)
			}
		})
	}
}

// Defect 1: a response that was cut short must not look whole.
func TestTruncatedResponseIsBroken(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
	for _, tt := range []struct{ name, request, response string }{
		{"at a chunk's boundary", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", chunked},
		{"in a chunk", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", chunked + "5\r\nhe"},
		{"before the trailers", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", chunked + "0\r\n"},
		{"bad chunk", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", chunked + "zz\r\n"},
		{"of known length", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"},
		{"of a length worth a splice", "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 100_000)},
		{"to an HTTP/1.0 client", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", chunked},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				readBlock(br)
				io.WriteString(c, tt.response)
			}))
			c := dial(t, e)
			c.send(tt.request)
			resp, err := http.ReadResponse(c.br, nil)
			if err != nil {
				return // broken before the header was seen: broken
			}
			if body, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("the client read a whole body of %d bytes", len(body))
			}
			wait(t, "the truncation is counted", func() bool {
				return e.metric(t, "sallyport_http_request_errors_total", "truncated") == 1
			})
		})
	}
}

// Defect 7: an HTTP/1.0 client is not sent chunks.
func TestHTTP10ClientGetsNoChunks(t *testing.T) {
	c := dial(t, one(t, rawBackend(t, answering(
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nServer: x\r\nDate: d\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n"))))
	c.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
	got, err := c.rest()
	if want := "HTTP/1.1 200 OK\r\nServer: x\r\nDate: d\r\nConnection: close\r\n\r\nhello!"; got != want || err != nil {
		t.Errorf("client got\n%q, %v, want\n%q", got, err, want)
	}
}

func TestHTTP10ClientKeepsConnectionWhereItAsks(t *testing.T) {
	c := dial(t, one(t, rawBackend(t, answering(ok))))
	for _, request := range []string{"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"} {
		c.send(request)
		if _, body := c.response("GET"); body != "ok" {
			t.Errorf("body %q, want ok", body)
		}
	}
	if rest, err := c.rest(); rest != "" || err != nil {
		t.Errorf("after the last answer came %q, %v, want the end", rest, err)
	}
}

func TestTrailers(t *testing.T) {
	e := one(t, httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, string(body), "|", r.Trailer.Get("X-Up"), "|", r.Trailer.Get("Host"))
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "43")
	}))
	c := dial(t, e)
	for range 2 { // the connection stays in order
		c.send("POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Up\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=\"a\"\r\nabc\r\n00\r\nX-Up: yes\r\nHost: b\r\n\r\n")
		resp, body := c.response("POST")
		if body != "abc|yes|" || resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
			t.Errorf("got %q, trailers %v", body, resp.Trailer)
		}
	}
}

// Defect 9: an answer that comes before the whole request was sent reaches the client.
func TestEarlyResponseIsRelayed(t *testing.T) {
	for _, tt := range []struct{ name, framing, piece string }{
		{"length", "Content-Length: 100000000", strings.Repeat("x", 1<<16)},
		{"chunked", "Transfer-Encoding: chunked", "ffff\r\n" + strings.Repeat("x", 0xffff) + "\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := one(t, rawBackend(t, func(c net.Conn, br *bufio.Reader) {
				readBlock(br)
				io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
			}))
			c := dial(t, e)
			c.send("POST / HTTP/1.1\r\nHost: a\r\n" + tt.framing + "\r\n\r\n")
			stopped := make(chan bool)
			go func() {
				defer close(stopped)
				for range 1000 {
					if _, err := io.WriteString(c, tt.piece); err != nil {
						return
					}
				}
			}()
			resp, body := c.response("POST")
			if resp.StatusCode != 413 || body != "big" || !resp.Close {
				t.Errorf("got %d %q, close %v, want 413 big and a close", resp.StatusCode, body, resp.Close)
			}
			c.Close()
			<-stopped
		})
	}
}

func TestBothDirectionsAtOnce(t *testing.T) {
	e := one(t, httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		line := bufio.NewScanner(r.Body)
		for line.Scan() {
			fmt.Fprintln(w, strings.ToUpper(line.Text()))
			rc.Flush()
		}
	}))
	c := dial(t, e)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(resp.Body)
	for _, next := range []string{"2\r\nb\n\r\n", "2\r\nc\n\r\n", "0\r\n\r\n"} {
		if line, err := body.ReadString('\n'); len(line) != 2 || err != nil {
			t.Fatalf("line %q, %v", line, err)
		}
		c.send(next)
	}
	if rest, err := io.ReadAll(body); len(rest) != 0 || err != nil {
		t.Errorf("rest %q, %v, want the end", rest, err)
	}
}

// Defect 10: a client that asks is told to go on only if the request has somewhere to go.
func TestExpectContinue(t *testing.T) {
	e := start(t, Options{})
	e.serve(t, map[string][]string{"a /": {httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %q", len(body), r.Header["Expect"])
	})}, "empty /": nil})
	for _, tt := range []struct {
		host, expect string
		length       int
		want         string
	}{
		{"a", "100-continue", 5, "5 []"},
		{"a", "100-Continue", 100_000, "100000 []"},
		{"b", "100-continue", 5, "404"},
		{"empty", "100-continue", 100_000, "503"},
		{"a@b", "100-continue", 5, "400"},
		{"a", "else", 5, "417"},
	} {
		c := dial(t, e)
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: %s\r\nExpect: %s\r\nContent-Length: %d\r\n\r\n", tt.host, tt.expect, tt.length))
		interim := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
		if len(tt.want) > 3 {
			if c.readFull(interim); string(interim) != "HTTP/1.1 100 Continue\r\n\r\n" {
				t.Fatalf("%s: first came %q, want 100", tt.host, interim)
			}
			c.send(strings.Repeat("x", tt.length))
		}
		resp, body := c.response("POST")
		if len(tt.want) == 3 {
			body = fmt.Sprint(resp.StatusCode)
		}
		if body != tt.want {
			t.Errorf("%s, %s: got %q, want %q", tt.host, tt.expect, body, tt.want)
		}
		if len(tt.want) == 3 {
			if rest, err := c.rest(); rest != "" || err != nil {
				t.Errorf("%s: after the refusal came %q, %v, want the end", tt.host, rest, err)
			}
		}
	}
}

// Large bodies pass through without being held in memory.
func TestLargeBodiesDoNotGrowMemory(t *testing.T) {
	const size = 256 << 20
	e := one(t, httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.Header().Set("X-Got", fmt.Sprint(n))
		io.CopyN(w, zeros{}, size)
	}))
	for _, length := range []int64{size, -1} { // by length, and chunked
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		req, _ := http.NewRequest("POST", "http://"+e.addr+"/", io.LimitReader(zeros{}, size))
		req.ContentLength = length
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != size || err != nil || resp.Header.Get("X-Got") != fmt.Sprint(size) {
			t.Errorf("sent %s of %d, got %d, %v", resp.Header.Get("X-Got"), size, n, err)
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
			t.Errorf("%d MiB were allocated for 512 MiB of bodies, want at most 16", grown>>20)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestBodyReaderTakesNoByteTooMany(t *testing.T) {
	for _, tt := range []struct {
		name   string
		frame  framing
		length int
		in     string
		want   string
		rest   string
		err    error
	}{
		{"length", framingLength, 3, "abcdef", "abc", "def", nil},
		{"none", framingNone, 0, "abc", "", "abc", nil},
		{"chunked", framingChunked, 0, "3\r\nabc\r\n2 ; x=y\r\nde\r\n0\r\n\r\nrest", "abcde", "rest", nil},
		{"trailers", framingChunked, 0, "0\r\nA: b\r\nC: d\r\n\r\nrest", "", "rest", nil},
		{"close", framingClose, 0, "abc", "abc", "", nil},
		{"short", framingLength, 5, "abc", "abc", "", io.ErrUnexpectedEOF},
		{"long chunk line", framingChunked, 0, "1;" + strings.Repeat("x", 300) + "\r\na", "", "", errChunk},
		{"long trailers", framingChunked, 0, "0\r\nA: " + strings.Repeat("x", 10_000) + "\r\n\r\n", "", "", errChunk},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := strings.NewReader(tt.in)
			var b bodyReader
			b.reset(src, tt.frame, tt.length)
			got, err := io.ReadAll(&b)
			if string(got) != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("read %q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
			if rest, _ := io.ReadAll(src); tt.err == nil && string(rest) != tt.rest {
				t.Errorf("left %q, want %q", rest, tt.rest)
			}
			if n, err := b.Read(make([]byte, 1)); tt.err == nil && (n != 0 || err != io.EOF) {
				t.Errorf("Read after the end = %d, %v, want EOF", n, err)
			}
		})
	}
}
