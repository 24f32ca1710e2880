package gateway

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestRequestFields(t *testing.T) {
	trust := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, tt := range []struct {
		name    string
		trusted []netip.Prefix
		request string
		want    string // what the endpoint gets after the Host field; PORT is the gateway's
	}{
		{"plain fields keep order and spelling", nil,
			"GET / HTTP/1.1\r\nb: 1\r\nHost: h\r\na:2\r\nB:  3 \r\nCookie: x=y; z\r\nCookie: w\r\n\r\n",
			"b: 1\r\na:2\r\nB:  3 \r\nCookie: x=y; z\r\nCookie: w\r\nX-Forwarded-For: 127.0.0.1\r\n" +
				"X-Forwarded-Proto: http\r\nX-Forwarded-Port: PORT\r\nX-Real-IP: 127.0.0.1\r\nX-Forwarded-Host: h\r\n\r\n"},
		{"hop by hop", nil,
			"GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Hop , host\r\nX-Hop: 1\r\nKeep-Alive: 2\r\n" +
				"Proxy-Connection: 3\r\nProxy-Authorization: 4\r\nTE: gzip, trailers\r\nUpgrade: websocket\r\n" +
				"HTTP2-Settings: 5\r\nTrailer: 6\r\nExpect: 100-continue\r\nX-Kept: 7\r\n\r\n",
			"X-Kept: 7\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: PORT\r\n" +
				"X-Real-IP: 127.0.0.1\r\nX-Forwarded-Host: h\r\nTE: trailers\r\n\r\n"},
		{"a stranger's claims are replaced", nil,
			"GET / HTTP/1.1\r\nHost: h:1\r\nX-Forwarded-For: 1.2.3.4\r\nx-forwarded-proto: https\r\n" +
				"X-Forwarded-Host: evil\r\nX-Forwarded-Port: 443\r\nX-Real-IP: 1.2.3.4\r\nX-Forwarded-Server: s\r\nForwarded: for=1\r\n\r\n",
			"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: PORT\r\n" +
				"X-Real-IP: 127.0.0.1\r\nX-Forwarded-Host: h:1\r\n\r\n"},
		{"a trusted proxy's are kept", trust,
			"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\nx-forwarded-proto: https\r\n" +
				"X-Forwarded-Host: good\r\nX-Real-IP: 1.2.3.4\r\nForwarded: for=1\r\n\r\n",
			"x-forwarded-proto: https\r\nX-Forwarded-Host: good\r\nX-Real-IP: 1.2.3.4\r\nForwarded: for=1\r\n" +
				"X-Forwarded-For: 1.2.3.4, 5.6.7.8, 127.0.0.1\r\nX-Forwarded-Port: PORT\r\n\r\n"},
		{"an empty list is not extended", trust,
			"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For:\r\nX-Forwarded-For: \r\n\r\n",
			"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: PORT\r\n" +
				"X-Real-IP: 127.0.0.1\r\nX-Forwarded-Host: h\r\n\r\n"},
		{"underscores are never let through", trust,
			"GET / HTTP/1.1\r\nHost: h\r\nX_Forwarded_For: 1\r\nX_Real-IP: 2\r\nX-Forwarded_Foo: 3\r\nContent_Length: 4\r\nMy_Field: 5\r\n\r\n",
			"My_Field: 5\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: PORT\r\n" +
				"X-Real-IP: 127.0.0.1\r\nX-Forwarded-Host: h\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, heads := recorder(t)
			e := start(t, Options{TrustedProxies: tt.trusted})
			e.serve(t, map[string][]string{" /": {addr}})
			c := dial(t, e)
			c.send(tt.request)
			_, port, _ := strings.Cut(e.addr, ":")
			head := <-heads
			_, got, _ := strings.Cut(head, "\r\nHost: ")
			_, got, _ = strings.Cut(got, "\r\n")
			if want := strings.ReplaceAll(tt.want, "PORT", port); got != want {
				t.Errorf("the endpoint was sent\n%q, want\n%q", got, want)
			}
		})
	}
}

func TestHostOfHTTP10WithoutOne(t *testing.T) {
	addr, heads := recorder(t)
	e := one(t, addr)
	dial(t, e).send("GET / HTTP/1.0\r\n\r\n")
	if head := <-heads; !strings.Contains(head, "\r\nHost: "+e.addr+"\r\n") {
		t.Errorf("the endpoint was sent %q, want the address that the client connected to as Host", head)
	}
}

// A link-local peer has a zone, which has no place in a header and is in no prefix.
func TestLinkLocalPeer(t *testing.T) {
	e := start(t, Options{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("fe80::/10")}})
	near, far := net.Pipe()
	defer far.Close()
	c := e.newConn(zonedConn{near}, nil)
	defer c.Close()
	if !c.trusted || c.peerText != "fe80::1" || c.localText != "[fe80::2]:80" {
		t.Errorf("trusted %v, peer %s, local %s, want a trusted fe80::1 at [fe80::2]:80", c.trusted, c.peerText, c.localText)
	}
}

type zonedConn struct{ net.Conn }

func (zonedConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 9, Zone: "lo"}
}
func (zonedConn) LocalAddr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP("fe80::2"), Port: 80, Zone: "lo"}
}

func TestResponseFields(t *testing.T) {
	const date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
	for _, tt := range []struct{ name, response, want string }{
		{"end to end",
			"HTTP/1.1 200 Fine\r\nServer: x\r\n" + date + "X-A: 1\r\nX-A: 2\r\nSet-Cookie: a=b; Path=/\r\nSet-Cookie: a=c\r\nContent-Length: 2\r\n\r\nok",
			"HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 2\r\n" + date + "X-A: 1\r\nX-A: 2\r\nSet-Cookie: a=b; Path=/\r\nSet-Cookie: a=c\r\n\r\nok"},
		{"hop by hop",
			"HTTP/1.1 200 OK\r\nServer: x\r\n" + date + "Connection: X-Hop, Content-Length, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n" +
				"Proxy-Connection: y\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\n" + date + "\r\nok"},
		{"of the name of a trailer",
			"HTTP/1.1 200 OK\r\nServer: x\r\n" + date + "Trailer: X-Sum, X-A\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: 2\r\n\r\n",
			"HTTP/1.1 200 OK\r\nServer: x\r\n" + date + "X-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: 2\r\n\r\n"},
		{"Server is added",
			"HTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nServer: sallyport\r\nContent-Length: 2\r\n" + date + "\r\nok"},
		{"no content type is made up",
			"HTTP/1.0 404 Not Found\r\n" + date + "Content-Length: 2\r\n\r\nok",
			"HTTP/1.1 404 Not Found\r\nServer: sallyport\r\nContent-Length: 2\r\n" + date + "\r\nok"},
		{"a 204 has no length",
			"HTTP/1.1 204 No Content\r\n" + date + "Content-Length: 0\r\n\r\n",
			"HTTP/1.1 204 No Content\r\nServer: sallyport\r\n" + date + "\r\n"},
		{"nor chunks",
			"HTTP/1.1 204 No Content\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n",
			"HTTP/1.1 204 No Content\r\nServer: sallyport\r\n" + date + "\r\n"},
		{"a 304 may have one",
			"HTTP/1.1 304 Not Modified\r\n" + date + "Content-Length: 77\r\nEtag: x\r\n\r\n",
			"HTTP/1.1 304 Not Modified\r\nServer: sallyport\r\nContent-Length: 77\r\n" + date + "Etag: x\r\n\r\n"},
		{"interim responses are dropped",
			"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nServer: sallyport\r\nContent-Length: 2\r\n" + date + "\r\nok"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, one(t, rawBackend(t, answering(tt.response))))
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			got := make([]byte, len(tt.want))
			c.readFull(got)
			if string(got) != tt.want {
				t.Errorf("client got\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

func TestDateIsAdded(t *testing.T) {
	c := dial(t, one(t, rawBackend(t, answering("HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok"))))
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, body := c.response("GET")
	if len(resp.Header["Date"]) != 1 || resp.Header.Get("X-A") != "1" || resp.Header.Get("Set-Cookie") != "a=b" || body != "ok" {
		t.Errorf("got %v %q, want a Date and the endpoint's fields", resp.Header, body)
	}
	if ct, ok := resp.Header["Content-Type"]; ok {
		t.Errorf("a Content-Type was made up: %q", ct)
	}
}

func TestHeadKeepsLength(t *testing.T) {
	c := dial(t, one(t, rawBackend(t, answering("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"))))
	for range 2 {
		c.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.response("HEAD"); resp.ContentLength != 1234 || body != "" {
			t.Errorf("length %d and body %q, want 1234 and none", resp.ContentLength, body)
		}
	}
}
