package gateway

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/watcher/model"
)

func TestCertificateBySNI(t *testing.T) {
	a := newAuthority(t)
	certificates := []model.Certificate{
		secret("exact", a.issue(t, "exact"), "a.example.com", "b.example.com"),
		secret("wild", a.issue(t, "wild"), "*.example.com"),
		secret("broken", a.issue(t, "broken"), "broken.example.com"),
	}
	certificates[2].Pair = nil
	byDefault := secret("default", a.issue(t, "default"), "default.example.org")
	byDefault.Default = true
	for _, tt := range []struct {
		name, sni, want string
		all             []model.Certificate
	}{
		{"exact", "a.example.com", "exact", certificates},
		{"exact, in capitals", "B.Example.COM", "exact", certificates},
		{"wildcard", "c.example.com", "wild", certificates},
		{"a wildcard is for one label", "c.d.example.com", "Sallyport fallback certificate", certificates},
		{"a wildcard is for no less", "example.com", "Sallyport fallback certificate", certificates},
		{"no usable key", "broken.example.com", "wild", certificates},
		{"default", "other.example.org", "default", append(certificates, byDefault)},
		{"default, by its name", "default.example.org", "default", append(certificates, byDefault)},
		{"default, without a name", "", "default", append(certificates, byDefault)},
		{"fallback, without a name", "", "Sallyport fallback certificate", certificates},
		{"too long a name", strings.Repeat("a.", 126) + "example.com", "Sallyport fallback certificate", certificates},
		{"nothing at all", "a.example.com", "Sallyport fallback certificate", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, Options{TLSAddresses: []string{"127.0.0.1:0"}})
			if err := e.Reconcile(t.Context(), &model.Snapshot{Certificates: tt.all}); err != nil {
				t.Fatal(err)
			}
			c := dialTLS(t, e, &tls.Config{ServerName: tt.sni, InsecureSkipVerify: true})
			if got := c.state().PeerCertificates[0].Subject.CommonName; got != tt.want {
				t.Errorf("presented %q, want %q", got, tt.want)
			}
		})
	}
}

func TestChoiceOfCertificateDoesNotAllocate(t *testing.T) {
	a := newAuthority(t)
	table := newCertificates([]model.Certificate{
		secret("exact", a.issue(t, "exact"), "shop.example.com"), secret("wild", a.issue(t, "wild"), "*.example.com")})
	for _, name := range []string{"shop.example.com", "Other.Example.com.", "a.example.org"} {
		if n := testing.AllocsPerRun(100, func() { table.find(name) }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

// Certificates change while clients connect, resume sessions and send: no request fails, and each connection is
// presented one of the certificates.
func TestRotationUnderLoad(t *testing.T) {
	addr := rawBackend(t, answering(ok))
	e, a := secure(t, Options{}, addr)
	var done atomic.Bool
	var served, resumed atomic.Int64
	var clients sync.WaitGroup
	for i := range 4 {
		config := a.client("shop.example.com")
		config.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		clients.Go(func() {
			for !done.Load() && !t.Failed() {
				c, err := tls.Dial("tcp", e.tlsAddr, config)
				if err != nil {
					t.Errorf("connect: %v", err)
					return
				}
				br := bufio.NewReader(c)
				for range i + 1 {
					io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
					resp, err := http.ReadResponse(br, nil)
					if err != nil || resp.StatusCode != 200 {
						t.Errorf("response: %v, %v", resp, err)
						break
					}
					io.Copy(io.Discard, resp.Body)
					served.Add(1)
				}
				if c.ConnectionState().DidResume {
					resumed.Add(1)
				}
				c.Close()
			}
		})
	}
	s := snapshot(t, map[string][]string{" /": {addr}})
	for range 50 {
		next := *s
		next.Certificates = []model.Certificate{secret("web", a.issue(t, "shop.example.com"), "shop.example.com")}
		if err := e.Reconcile(t.Context(), &next); err != nil {
			t.Fatal(err)
		}
		before := served.Load()
		wait(t, "requests were served after the rotation", func() bool { return served.Load() > before+8 || t.Failed() })
	}
	done.Store(true)
	clients.Wait()
	if resumed.Load() == 0 {
		t.Error("no session was resumed")
	}
	if n := e.metric(t, "sallyport_gateway_tls_handshakes_total", "refused"); n != 0 {
		t.Errorf("%v handshakes were refused", n)
	}
}

func TestNewConnectionsGetTheNewCertificate(t *testing.T) {
	e, a := secure(t, Options{}, rawBackend(t, answering(ok)))
	config := a.client("shop.example.com")
	config.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	get := func() tls.ConnectionState {
		c := dialTLS(t, e, config)
		c.send("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
		c.response("GET")
		c.Close()
		return c.state()
	}
	get()
	renewed := a.issue(t, "shop.example.com")
	if err := e.Reconcile(t.Context(), &model.Snapshot{Certificates: []model.Certificate{secret("web", renewed, "shop.example.com")}}); err != nil {
		t.Fatal(err)
	}
	if !get().DidResume {
		t.Error("a session from before the rotation is not resumed")
	}
	config.ClientSessionCache = nil
	if got := get().PeerCertificates[0]; !got.Equal(renewed.Leaf) {
		t.Errorf("presented serial %v, want %v", got.SerialNumber, renewed.Leaf.SerialNumber)
	}
}

func TestExpiryOfCertificatesIsShown(t *testing.T) {
	const name = "sallyport_gateway_certificate_expiry_timestamp_seconds"
	e, a := secure(t, Options{}, closedAddr(t))
	pair := a.issue(t, "x")
	if n := e.metric(t, name, "shop/web"); n == 0 {
		t.Error("the expiry of shop/web is not shown")
	}
	if err := e.Reconcile(t.Context(), &model.Snapshot{Certificates: []model.Certificate{secret("new", pair, "x")}}); err != nil {
		t.Fatal(err)
	}
	if n := e.metric(t, name, "shop/web"); n != 0 {
		t.Error("the expiry of a Secret that is gone is still shown")
	}
	if n := e.metric(t, name, "shop/new"); n != float64(pair.Leaf.NotAfter.Unix()) {
		t.Errorf("expiry of shop/new %v, want %v", n, pair.Leaf.NotAfter.Unix())
	}
}

// What the fallback certificate says is for people.
func TestFallbackCertificate(t *testing.T) {
	pair, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.CheckSignature(pair.Leaf.SignatureAlgorithm, pair.Leaf.RawTBSCertificate, pair.Leaf.Signature); err != nil {
		t.Errorf("the signature is not its own: %v", err)
	}
	if !slices.Equal(pair.Leaf.DNSNames, nil) || pair.Leaf.Subject.CommonName != "Sallyport fallback certificate" {
		t.Errorf("it is for %v %v", pair.Leaf.Subject, pair.Leaf.DNSNames)
	}
}
