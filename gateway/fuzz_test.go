package gateway

import (
	"bufio"
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"
)

// FuzzRequest holds our reading of a request against net/http's: what we accept, it accepts with the same framing, and
// what we send on is one request that says what we matched.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		browserRequest,
		"POST http://a:80/b?c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close, X\r\nX: y\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 5\r\nX_Forwarded_For: 1\r\nTE: trailers\r\n\r\n",
		"GET /%2e%2e/\xff HTTP/1.0\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, x\r\nUpgrade: websocket, chat/1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		x := &exchange{c: &conn{peerText: "192.0.2.1", localPort: "80", localText: "192.0.2.2:80"}, ctx: new(fasthttp.RequestCtx)}
		h := &x.ctx.Request.Header
		br := bufio.NewReaderSize(bytes.NewReader(raw), 16<<10)
		if h.Read(br) != nil || x.req.read(h) != nil {
			return
		}
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			t.Fatalf("accepted %q, which net/http refuses: %v", raw, err)
		}
		sameFraming(t, &x.req, theirs)

		head := x.appendHead(nil)
		rest := bufio.NewReader(bytes.NewReader(head))
		sent, err := http.ReadRequest(rest)
		if err != nil {
			t.Fatalf("%q is sent on as %q, which net/http refuses: %v", raw, head, err)
		}
		sameFraming(t, &x.req, sent)
		if n := bytes.Count(head, []byte("\r\n\r\n")); n != 1 || !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
			t.Errorf("%q is sent on as %q, which has %d ends", raw, head, n)
		}
		if want := string(x.req.path) + string(x.req.query); sent.RequestURI != want {
			t.Errorf("%q is sent on as %q, want target %q", raw, head, want)
		}
		if len(x.req.authority) > 0 && sent.Host != string(x.req.authority) {
			t.Errorf("%q is sent on as %q, want host %q", raw, head, x.req.authority)
		}
		asked := strings.ToLower(sent.Header.Get("Upgrade"))
		if len(sent.Header["Connection"]) != len(sent.Header["Upgrade"]) || slices.Contains(strings.Split(asked, ", "), "h2c") ||
			asked != "" && (x.req.version1 || x.req.framing != framingNone) {
			t.Errorf("%q is sent on as %q, which must not ask for another protocol", raw, head)
		}
		if got := sent.Header["X-Forwarded-For"]; !slices.Equal(got, []string{"192.0.2.1"}) {
			t.Errorf("%q is sent on with X-Forwarded-For %q", raw, got)
		}
	})
}

// sameFraming compares where our reading and net/http's see the end of the body.
func sameFraming(t *testing.T, ours *request, theirs *http.Request) {
	t.Helper()
	chunked, length := ours.framing == framingChunked, int64(0)
	switch ours.framing {
	case framingChunked:
		length = -1
	case framingLength:
		length = int64(ours.length)
	}
	if chunked != slices.Contains(theirs.TransferEncoding, "chunked") || length != theirs.ContentLength {
		t.Errorf("chunked %v length %d, net/http sees %v and %d", chunked, length, theirs.TransferEncoding, theirs.ContentLength)
	}
	if string(ours.method) != theirs.Method {
		t.Errorf("method %q, net/http sees %q", ours.method, theirs.Method)
	}
}

// FuzzBodyReader holds our reading of a chunked body against net/http's.
func FuzzBodyReader(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n", "3\nabc\r\n0\r\n\r\n", "03\r\nabc\r\n",
		"3 \r\nabc\r\n0\r\n\r\n", "3 0\r\nabc\r\n0\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b bodyReader
		b.reset(bytes.NewReader(raw), framingChunked, 0)
		ours := new(bytes.Buffer)
		if _, err := ours.ReadFrom(&b); err != nil {
			return
		}
		full := append([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), raw...)
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(full)))
		if err != nil {
			t.Fatal(err)
		}
		theirs := new(bytes.Buffer)
		if _, err := theirs.ReadFrom(r.Body); err != nil {
			t.Fatalf("read %q from %q, which net/http refuses: %v", ours, raw, err)
		}
		if !bytes.Equal(ours.Bytes(), theirs.Bytes()) {
			t.Errorf("read %q from %q, net/http %q", ours, raw, theirs)
		}
	})
}
