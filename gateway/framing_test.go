package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// recorder is a backend that answers every request without body with "ok" and notes the header blocks.
func recorder(t testing.TB) (addr string, heads <-chan string) {
	t.Helper()
	got := make(chan string, 100)
	return rawBackend(t, func(c net.Conn, br *bufio.Reader) {
		for {
			head, err := readBlock(br)
			if head != "" {
				got <- head
			}
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}), got
}

// What two readers could read differently is refused, and the connection with it: defects 3 to 6 of the naive proxy,
// which takes all of these.
func TestRefusesAmbiguousRequests(t *testing.T) {
	const body = "5\r\nhello\r\n0\r\n\r\n"
	for _, tt := range []struct {
		name, request string
		code          int
	}{
		{"length and chunked", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + body, 400},
		{"chunked and length", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + body, 400},
		{"identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"identity alone", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400},
		{"gzip, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + body, 400},
		{"two codings", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + body, 400},
		{"coding with VT", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n" + body, 400},
		{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body, 400},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"length list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400},
		{"length with sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400},
		{"negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", 400},
		{"length overflow", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400},
		{"bare LF blank line", "GET / HTTP/1.1\r\nHost: a\r\n\nGET /x HTTP/1.1\r\nHost: b\r\n\r\n", 400},
		{"bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", 400},
		{"NUL in value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\x00z\r\n\r\n", 400},
		{"folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400},
		{"folded coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n" + body, 400},
		{"space before first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
		{"space in name", "GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", 400},
		{"space before colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello", 400},
		{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nXYZ\r\n\r\n", 400},
		{"empty name", "GET / HTTP/1.1\r\nHost: a\r\n: z\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"userinfo in host", "GET / HTTP/1.1\r\nHost: u:p@a\r\n\r\n", 400},
		{"invalid host beside a target with one", "GET http://a/ HTTP/1.1\r\nHost: b c\r\n\r\n", 400},
		{"userinfo in target", "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"target without slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"asterisk of GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"fragment", "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"escaped NUL", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"backslash", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
		{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
		{"HTTP/0.9", "GET /\r\n\r\n", 400},
		{"CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405},
		{"TRACE", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405},
		{"header too large", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 20<<10) + "\r\n\r\n", 431},
		{"unknown expectation", "GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417},
		{"Connection names too much", "GET / HTTP/1.1\r\nHost: a\r\nConnection: " + strings.Repeat("x,", 20) + "x\r\n\r\n", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, heads := recorder(t)
			c := dial(t, one(t, addr))
			c.send(tt.request)
			resp, _ := c.response("GET")
			if resp.StatusCode != tt.code {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.code)
			}
			if tt.code == 400 {
				if rest, err := c.rest(); rest != "" || err != nil {
					t.Errorf("after the answer came %q, %v, want the end of the connection", rest, err)
				}
			}
			select {
			case head := <-heads:
				t.Errorf("the endpoint was sent %q", head)
			default:
			}
		})
	}
}

// A malformed or unfinished chunked body never becomes a whole one at the endpoint.
func TestBrokenUploadStaysBroken(t *testing.T) {
	const chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
	for _, tt := range []struct{ name, request string }{
		{"cut at a chunk's boundary", chunked},
		{"cut in a chunk", chunked + "5\r\nhe"},
		{"cut in the size", chunked + "5"},
		{"cut in the trailers", chunked + "0\r\nX: y\r\n"},
		{"cut before the last line", chunked + "0\r\n"},
		{"size with prefix", chunked + "0x5\r\nhello\r\n0\r\n\r\n"},
		{"size with sign", chunked + "+5\r\nhello\r\n0\r\n\r\n"},
		{"size overflow", chunked + "ffffffffffffffff0\r\nhello\r\n0\r\n\r\n"},
		{"no size", chunked + ";ext\r\nhello\r\n0\r\n\r\n"},
		{"LF after size", chunked + "5\nhello\r\n0\r\n\r\n"},
		{"LF in extension", chunked + "5;a\nb\r\nhello\r\n0\r\n\r\n"},
		{"LF after chunk", chunked + "5\r\nhello\n0\r\n\r\n"},
		{"chunk longer than its size", chunked + "5\r\nhello world\r\n0\r\n\r\n"},
		{"bad trailer", chunked + "0\r\nX Y: z\r\n\r\n"},
		{"CR in trailer", chunked + "0\r\nX: y\rz\r\n\r\n"},
		{"cut before the length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\nhello"},
		{"cut small body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := make(chan error, 1)
			e := one(t, rawBackend(t, func(_ net.Conn, br *bufio.Reader) {
				head, err := readBlock(br)
				if err == nil {
					err = readWholeBody(head, br)
				}
				got <- err
			}))
			c := dial(t, e)
			c.send(tt.request)
			c.CloseWrite()
			resp, _ := c.response("POST")
			if resp.StatusCode != 400 {
				t.Errorf("status %d, want 400", resp.StatusCode)
			}
			if tt.name == "cut small body" {
				return // never gets as far as the endpoint
			}
			if err := <-got; err == nil {
				t.Errorf("the endpoint read a whole request")
			}
		})
	}
}

// readWholeBody reads a request's body as a careful endpoint would.
func readWholeBody(head string, br *bufio.Reader) error {
	var b bodyReader
	if strings.Contains(head, "chunked") {
		b.reset(br, framingChunked, 0)
	} else {
		var n int
		_, length, _ := strings.Cut(head, "Content-Length: ")
		if _, err := fmt.Sscan(length, &n); err != nil {
			return err
		}
		b.reset(br, framingLength, n)
	}
	_, err := io.Copy(io.Discard, &b)
	return err
}

// What is matched is what is forwarded: defects 3 and 4.
func TestForwardsWhatItMatched(t *testing.T) {
	for _, tt := range []struct{ request, want string }{ // want: beginning of what the endpoint gets
		{"GET //evil.com/a?u=http://z HTTP/1.1\r\nHost: a\r\n\r\n", "GET //evil.com/a?u=http://z HTTP/1.1\r\nHost: a\r\n"},
		{"GET http://B:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "GET /x?y HTTP/1.1\r\nHost: b:81\r\n"},
		{"GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: b\r\n"},
		{"GET /a/%2e%2e/admin HTTP/1.1\r\nHost: a\r\n\r\n", "GET /admin HTTP/1.1\r\nHost: a\r\n"},
		{"GET /%61%2Fb HTTP/1.1\r\nHost: a\r\n\r\n", "GET /a%2Fb HTTP/1.1\r\nHost: a\r\n"},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n"},
		{"get / HTTP/1.1\r\nhOST: A.\r\n\r\n", "get / HTTP/1.1\r\nHost: a\r\n"},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\n"},
		{"GET / HTTP/1.0\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n"},
		{"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n"},
	} {
		t.Run(tt.request, func(t *testing.T) {
			addr, heads := recorder(t)
			c := dial(t, one(t, addr))
			c.send(tt.request)
			if resp, _ := c.response("GET"); resp.StatusCode != 200 {
				t.Fatalf("status %d, want 200", resp.StatusCode)
			}
			if head := <-heads; !strings.HasPrefix(head, tt.want) {
				t.Errorf("the endpoint was sent\n%q, want\n%q", head, tt.want)
			}
		})
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	c := dial(t, one(t, httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	})))
	c.send("POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" +
		"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nyGET /3 HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n")
	for _, want := range []string{"/1 x", "/2 y", "/3 "} {
		if _, body := c.response("GET"); body != want {
			t.Errorf("response %q, want %q", body, want)
		}
	}
	if rest, err := c.rest(); rest != "" || err != nil {
		t.Errorf("after the last answer came %q, %v, want the end", rest, err)
	}
}
