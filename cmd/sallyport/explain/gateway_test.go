package explain

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/gateway"
	"sallyport/watcher/model"
)

// TestExplainSaysWhatTheGatewayDoes sends random requests to a gateway with random routes and certificates, and holds what
// is explained to what comes back.
func TestExplainSaysWhatTheGatewayDoes(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer backend.Close()
	g, addresses := startGateway(t)
	o := Options{HTTPPort: 80, HTTPSPort: 443}
	hosts := []string{"", "*.example.com", "a.example.com", "*.a.example.com", "example.com"}
	asked := []string{"a.example.com", "B.example.com.", "b.a.example.com", "example.com", "example.org", "a_b.example.com"}
	paths := []string{"/", "/a", "/a/b", "/ab", "/a/", "/%61/./b", "//a", "/.well-known/acme-challenge/x"}
	r := randv2.New(randv2.NewPCG(11, 12))
	verdicts := map[Verdict]int{}
	for range 40 {
		s := randomSnapshot(t, r, hosts, netip.MustParseAddrPort(backend.Listener.Addr().String()))
		if err := g.Reconcile(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		for range 25 {
			scheme, host, path := []string{"http", "https"}[r.IntN(2)], asked[r.IntN(len(asked))], paths[r.IntN(len(paths))]
			e, err := Explain(s, o, scheme+"://"+host+path)
			if err != nil {
				t.Fatal(err)
			}
			got, want := ask(t, addresses[scheme], scheme, host, path), answerOf(e, scheme)
			if got != want {
				t.Fatalf("%s://%s%s is explained as %q, and was answered %q\n%s", scheme, host, path, want, got, text(t, e))
			}
			verdicts[e.Verdict]++
		}
	}
	for _, v := range []Verdict{Served, Redirect, Refused, None} {
		if verdicts[v] < 50 {
			t.Errorf("%v: of %s too few to mean something", verdicts, v)
		}
	}
}

// startGateway runs a gateway and returns where it listens, by scheme.
func startGateway(t *testing.T) (*gateway.Gateway, map[string]string) {
	t.Helper()
	var bound []net.Listener
	g := gateway.New(gateway.Options{Addresses: []string{"127.0.0.1:0"}, TLSAddresses: []string{"127.0.0.1:0"}, DrainTime: time.Second,
		Listen: func(ctx context.Context, network, address string) (net.Listener, error) {
			l, err := new(net.ListenConfig).Listen(ctx, network, address)
			bound = append(bound, l)
			return l, err
		}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err := g.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return g, map[string]string{"http": bound[0].Addr().String(), "https": bound[1].Addr().String()}
}

// randomSnapshot has routes to a Service that is there, one without endpoints and none, and certificates.
func randomSnapshot(t *testing.T, r *randv2.Rand, hosts []string, to netip.AddrPort) *model.Snapshot {
	t.Helper()
	s := randomRoutes(r, hosts, []string{"/", "/a", "/a/b", "/ab", "/a/"})
	for i, d := range [][]model.Destination{{{Addr: to, Reach: model.ReachPods}}, nil} {
		s.Services = append(s.Services, model.Service{Ref: model.ObjectRef{Kind: "Service", Name: fmt.Sprint("s", i)},
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, Destinations: d}}})
	}
	for i := range s.Routes {
		m := &s.Routes[i]
		m.RedirectHTTPS = r.IntN(3) == 0
		if k := r.IntN(4); k < 3 { // s2 is not there
			m.Backends = []model.Backend{{Service: model.ObjectRef{Kind: "Service", Name: fmt.Sprint("s", max(k, r.IntN(2)))}, Port: 80, Weight: 1}}
		}
	}
	defaultHost := r.IntN(2 * len(hosts))
	for i, host := range hosts {
		if r.IntN(2) == 0 && i != defaultHost {
			continue
		}
		c := model.Certificate{Ref: model.ObjectRef{Kind: "Secret", Name: fmt.Sprint("c", i)}, Default: i == defaultHost}
		c.Pair = certificate(t, c.Ref.String())
		if host != "" {
			c.Hosts = []string{host}
		}
		s.Certificates = append(s.Certificates, c)
	}
	return s
}

// certificate makes one that tells its Secret by what it is for.
func certificate(t *testing.T, secret string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{strings.ReplaceAll(secret, " ", ".")}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// ask sends a request, and words what comes back: the code, where it leads, and whose certificate was shown.
func ask(t *testing.T, address, scheme, host, path string) string {
	t.Helper()
	d := &net.Dialer{}
	client := http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: host},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return d.DialContext(ctx, network, address)
			}}}
	resp, err := client.Get(scheme + "://" + host + path)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	answer := fmt.Sprintf("%d ", resp.StatusCode)
	if location := resp.Header.Get("Location"); location != "" { // which is as the client spelt it
		normal, err := parse(location)
		if err != nil {
			t.Fatal(err)
		}
		answer += normal.text
	}
	if resp.TLS != nil {
		answer += " by " + strings.Join(resp.TLS.PeerCertificates[0].DNSNames, " ")
	}
	return answer
}

// answerOf is an explanation in the words of ask.
func answerOf(e Explanation, scheme string) string {
	answer := map[Verdict]string{Served: "200 ", None: "404 ", Refused: "503 ", Redirect: "308 "}[e.Verdict]
	if e.Verdict == Redirect {
		_, location, _ := strings.Cut(e.Summary, "redirects it to ")
		answer += location
	}
	if scheme == "https" {
		answer += " by "
		if e.Certificate != nil {
			answer += strings.ReplaceAll(e.Certificate.Object, " ", ".")
		}
	}
	return answer
}
