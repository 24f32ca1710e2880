package gateway

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/watcher/model"
)

// An authority issues certificates that its clients trust.
type authority struct {
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	serial atomic.Int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := new(authority)
	pair := a.issue(t, "ca")
	a.key, a.cert = pair.PrivateKey.(*ecdsa.PrivateKey), pair.Leaf
	return a
}

// issue returns a certificate for the hosts; the first one makes the authority.
func (a *authority) issue(t testing.TB, hosts ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(a.serial.Add(1)), Subject: pkix.Name{CommonName: hosts[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: hosts}
	parent, parentKey := a.cert, a.key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, parentKey = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}
}

// client returns the settings of a client that asks for the host.
func (a *authority) client(host string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return &tls.Config{ServerName: host, RootCAs: roots}
}

func secret(name string, pair *tls.Certificate, hosts ...string) model.Certificate {
	return model.Certificate{Ref: model.ObjectRef{Kind: "Secret", Namespace: "shop", Name: name}, Hosts: hosts,
		NotAfter: pair.Leaf.NotAfter, Pair: pair}
}

// secure starts an edge that sends everything to addr and has a certificate for shop.example.com.
func secure(t testing.TB, o Options, addr string) (*edge, *authority) {
	t.Helper()
	o.TLSAddresses = []string{"127.0.0.1:0"}
	e, a := start(t, o), newAuthority(t)
	s := snapshot(t, map[string][]string{" /": {addr}})
	s.Certificates = []model.Certificate{secret("web", a.issue(t, "shop.example.com"), "shop.example.com")}
	if err := e.Reconcile(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return e, a
}

func dialTLS(t testing.TB, e *edge, config *tls.Config) *client {
	t.Helper()
	c, err := tls.Dial("tcp", e.tlsAddr, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{t, c, bufio.NewReader(c)}
}

// state is what the client and the edge agreed on.
func (c *client) state() tls.ConnectionState { return c.duplex.(*tls.Conn).ConnectionState() }

func TestServesHTTPS(t *testing.T) {
	addr, heads := recorder(t)
	e, a := secure(t, Options{}, addr)
	c := dialTLS(t, e, a.client("shop.example.com"))
	for range 3 {
		c.send("GET / HTTP/1.1\r\nHost: shop.example.com\r\nX-Forwarded-Proto: http\r\n\r\n")
		if resp, body := c.response("GET"); resp.StatusCode != 200 || body != "ok" {
			t.Fatalf("%d %q, want 200 ok", resp.StatusCode, body)
		}
		_, port, _ := net.SplitHostPort(e.tlsAddr)
		if head := <-heads; !strings.Contains(head, "\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: "+port+"\r\n") {
			t.Errorf("the endpoint was sent %q, want https and port %s", head, port)
		}
	}
	if n := e.metric(t, "sallyport_gateway_tls_handshakes_total", "full"); n != 1 {
		t.Errorf("%v handshakes, want 1", n)
	}
}

func TestTLSVersionsAndProtocols(t *testing.T) {
	addr := rawBackend(t, answering(ok))
	for _, tt := range []struct {
		name   string
		o      Options
		config *tls.Config
		want   string // protocol and version, or a part of the error
	}{
		{"newest", Options{}, &tls.Config{}, " TLS 1.3"},
		{"oldest", Options{}, &tls.Config{MaxVersion: tls.VersionTLS12}, " TLS 1.2"},
		{"older", Options{}, &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}, "protocol version not supported"},
		{"1.3 only", Options{TLSMinVersion: tls.VersionTLS13}, &tls.Config{MaxVersion: tls.VersionTLS12}, "protocol version not supported"},
		{"browser", Options{}, &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, "http/1.1 TLS 1.3"},
		{"old browser", Options{}, &tls.Config{NextProtos: []string{"http/1.0"}}, "http/1.0 TLS 1.3"},
		{"HTTP/2 only", Options{}, &tls.Config{NextProtos: []string{"h2"}}, "no application protocol"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, _ := secure(t, tt.o, addr)
			tt.config.InsecureSkipVerify = true
			c, err := tls.Dial("tcp", e.tlsAddr, tt.config)
			got := fmt.Sprint(err)
			if err == nil {
				defer c.Close()
				got = c.ConnectionState().NegotiatedProtocol + " " + tls.VersionName(c.ConnectionState().Version)
			}
			if !strings.HasSuffix(got, tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestHandshakesAreCountedByResult(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		connect    func(t *testing.T, e *edge, c net.Conn)
	}{
		{"garbage", "not_tls", func(_ *testing.T, _ *edge, c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\n") }},
		{"silence", "timeout", func(_ *testing.T, _ *edge, c net.Conn) { io.Copy(io.Discard, c) }},
		{"byte by byte", "timeout", func(_ *testing.T, _ *edge, c net.Conn) {
			for _, b := range []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") {
				c.Write([]byte{b})
			}
			io.Copy(io.Discard, c)
		}},
		{"gone at once", "client_gone", func(_ *testing.T, _ *edge, c net.Conn) { c.Close() }},
		{"untrusted", "refused_by_client", func(_ *testing.T, _ *edge, c net.Conn) {
			tls.Client(c, &tls.Config{ServerName: "shop.example.com"}).Handshake()
		}},
		{"old", "refused", func(_ *testing.T, _ *edge, c net.Conn) {
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Handshake()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{}
			if tt.want == handshakeTimeout {
				o.HeaderTimeout = 100 * time.Millisecond
			}
			e, _ := secure(t, o, closedAddr(t))
			c, err := net.Dial("tcp", e.tlsAddr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tt.connect(t, e, c)
			wait(t, tt.want+" is counted", func() bool {
				return e.metric(t, "sallyport_gateway_tls_handshakes_total", tt.want) == 1
			})
			wait(t, "the connection is closed", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
		})
	}
}

// The end of the gateway is no fault of the client.
func TestHandshakeThatIsCutIsCounted(t *testing.T) {
	e, _ := secure(t, Options{DrainTime: 50 * time.Millisecond}, closedAddr(t))
	c, err := net.Dial("tcp", e.tlsAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "\x16\x03\x01\x02\x00\x01")
	wait(t, "the connection is accepted", func() bool { return e.metric(t, "sallyport_http_connections") == 1 })
	e.stop()
	if n := e.metric(t, "sallyport_gateway_tls_handshakes_total", handshakeTimeout); n != 1 {
		t.Errorf("counted %v handshakes that timed out, want 1", n)
	}
}

func TestClearOnTheTLSPortIsExplained(t *testing.T) {
	e, _ := secure(t, Options{}, closedAddr(t))
	c := &client{t: t}
	conn, err := net.Dial("tcp", e.tlsAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c.duplex, c.br = conn.(duplex), bufio.NewReader(conn)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000))
	if resp, body := c.response("POST"); resp.StatusCode != 400 || !strings.Contains(body, "speaks HTTPS") {
		t.Errorf("%d %q, want 400 with the reason", resp.StatusCode, body)
	}
}

// A tap keeps what was read from a connection.
type tap struct {
	net.Conn
	read []byte
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read = append(c.read, p[:n]...)
	return n, err
}

// endsWithAlert reports whether the last TLS record is an alert, which TLS 1.2 shows in clear.
func (c *tap) endsWithAlert() bool {
	kind := byte(0)
	for b := c.read; len(b) >= 5; {
		kind = b[0]
		b = b[min(len(b), 5+int(b[3])<<8+int(b[4])):]
	}
	return kind == 21
}

// The end of a TLS connection says whether all was sent (close_notify), whatever the framing.
func TestCloseNotify(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
	for _, tt := range []struct {
		name, request, response string
		want                    bool
	}{
		{"answered and closed", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", ok, true},
		{"idle for too long", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", ok, true},
		{"nothing was asked", "", "", true},
		{"an early answer", "POST / HTTP/1.1\r\nHost: \xff\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 50_000), "", true},
		{"an HTTP/1.0 client", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", chunked + "0\r\n\r\n", true},
		{"truncated", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", chunked, false},
		{"truncated, of known length", "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 100_000), false},
		{"truncated, for an HTTP/1.0 client", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", chunked, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, _ := secure(t, Options{IdleTimeout: 100 * time.Millisecond, HeaderTimeout: time.Second},
				rawBackend(t, func(c net.Conn, br *bufio.Reader) {
					readBlock(br)
					io.WriteString(c, tt.response)
					if tt.want {
						readBlock(br)
					}
				}))
			socket, err := net.Dial("tcp", e.tlsAddr)
			if err != nil {
				t.Fatal(err)
			}
			raw := &tap{Conn: socket}
			c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
			defer c.Close()
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, tt.request)
			io.Copy(io.Discard, c)
			if got := raw.endsWithAlert(); got != tt.want {
				t.Errorf("close_notify: %v, want %v", got, tt.want)
			}
		})
	}
}

// Defect 11 over TLS, where a client that leaves has sent a close_notify which nobody reads.
func TestClientGoneOverTLS(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			began, gone := make(chan bool), make(chan bool)
			e, a := secure(t, Options{}, rawBackend(t, func(_ net.Conn, br *bufio.Reader) {
				readBlock(br)
				close(began)
				br.ReadByte()
				close(gone)
			}))
			config := a.client("shop.example.com")
			config.MaxVersion = version
			c := dialTLS(t, e, config)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			<-began
			c.Close()
			<-gone
			wait(t, "the connection is closed", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
			if n := e.metric(t, "sallyport_http_request_errors_total", "client_gone"); n != 1 {
				t.Errorf("counted %v clients that are gone, want 1", n)
			}
		})
	}
}

// A client that takes nothing of its response does not hold on to it, and the watcher does not wait for it.
func TestSlowReaderOverTLS(t *testing.T) {
	e, a := secure(t, Options{WriteTimeout: 300 * time.Millisecond}, httpBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 64 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}))
	c := dialTLS(t, e, a.client("shop.example.com"))
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	wait(t, "the connection is cut", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
}

// Nor does one that has TLS answer by itself, which a Read waits for.
func TestSlowReaderOfTLSItself(t *testing.T) {
	e, a := secure(t, Options{HeaderTimeout: time.Hour, WriteTimeout: 300 * time.Millisecond}, closedAddr(t))
	dialTLS(t, e, a.client("shop.example.com"))
	served := e.connections()[0]
	done := make(chan bool)
	go func() {
		for err := error(nil); err == nil; {
			_, err = served.tls.NetConn().Write(make([]byte, 64<<10)) // in place of many KeyUpdates
		}
		close(done)
	}()
	wait(t, "the connection is cut", func() bool { return e.metric(t, "sallyport_http_connections") == 0 })
	<-done
}

func TestBodiesOverTLS(t *testing.T) {
	e, a := secure(t, Options{}, httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.ContentLength > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		w.Write(body)
	}))
	c := dialTLS(t, e, a.client("shop.example.com"))
	for _, size := range []int{0, 1, 100, smallBody, smallBody + 1, spliceFrom, 1 << 20, 5 << 20} {
		body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
		go fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", size, body)
		if _, got := c.response("POST"); got != body {
			t.Fatalf("%d bytes came back of %d", len(got), size)
		}
		go fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%s", size, body,
			[]string{"", "0\r\n\r\n"}[min(size, 1)])
		if _, got := c.response("POST"); got != body {
			t.Fatalf("%d bytes came back of %d, chunked", len(got), size)
		}
	}
}
