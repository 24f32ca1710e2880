package gateway

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRedirectToHTTPS(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, tt := range []struct {
		name, request string
		port          uint16
		trusted       []netip.Prefix
		want          string // Location; empty if the request is served
	}{
		{"root", "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", 0, nil, "https://shop.example.com/"},
		{"the host is normalised, its port is dropped", "GET / HTTP/1.1\r\nHost: Shop.Example.com.:8080\r\n\r\n", 443, nil, "https://shop.example.com/"},
		{"another port", "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", 8443, nil, "https://shop.example.com:8443/"},
		{"the target is as it came", "GET //a/%2e%2E/b%2Fc//;d=e?f=%00&g=\"<\xff> HTTP/1.1\r\nHost: a\r\n\r\n", 0, nil, "https://a//a/%2e%2E/b%2Fc//;d=e?f=%00&g=\"<\xff>"},
		{"the absolute form", "GET http://a:80/b?c=http://d HTTP/1.1\r\nHost: e\r\n\r\n", 0, nil, "https://a/b?c=http://d"},
		{"POST", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 0, nil, "https://a/x"},
		{"a large body", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100_000), 0, nil, "https://a/x"},
		{"a body not yet sent", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", 0, nil, "https://a/x"},
		{"WebSocket", askForChat, 0, nil, "https://a/chat"},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 0, nil, "https://a/"},
		{"no host", "GET /x HTTP/1.0\r\n\r\n", 0, nil, "https://127.0.0.1/x"},
		{"a stranger says https", "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n", 0, nil, "https://a/"},
		{"a trusted proxy says http", "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: http, https\r\n\r\n", 0, proxies, "https://a/"},
		{"a trusted proxy says nothing", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, proxies, "https://a/"},
		{"a trusted proxy says https", "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: HTTPS, http\r\n\r\n", 0, proxies, ""},
		{"a challenge", "GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: a\r\n\r\n", 0, nil, ""},
		{"no challenge", "GET /.well-known/acme-challenge/../../x HTTP/1.1\r\nHost: a\r\n\r\n", 0, nil, "https://a/.well-known/acme-challenge/../../x"},
		{"a host in clear", "GET / HTTP/1.1\r\nHost: clear.example.com\r\n\r\n", 0, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := rawBackend(t, answering(ok))
			e, a := secure(t, Options{RedirectPort: tt.port, TrustedProxies: tt.trusted}, addr)
			s := snapshot(t, map[string][]string{" /": {addr}, "clear.example.com /": {addr}})
			for i := range s.Routes {
				s.Routes[i].RedirectHTTPS = s.Routes[i].Host == ""
			}
			s.Certificates = nil
			if err := e.Reconcile(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			c := dial(t, e)
			c.send(tt.request)
			resp, _ := c.response("GET")
			wantCode := 308
			if tt.want == "" {
				wantCode = 200
			}
			if got := resp.Header.Get("Location"); resp.StatusCode != wantCode || got != tt.want {
				t.Errorf("%d to %q, want %d to %q", resp.StatusCode, got, wantCode, tt.want)
			}
			config := a.client("")
			config.InsecureSkipVerify = true
			c = dialTLS(t, e, config)
			if c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"); tt.want != "" {
				if resp, _ := c.response("GET"); resp.StatusCode != 200 {
					t.Errorf("over TLS: %d, want 200", resp.StatusCode)
				}
			}
		})
	}
}

// A redirect is no error, and needs no endpoint.
func TestRedirectIsCounted(t *testing.T) {
	e, _ := secure(t, Options{}, closedAddr(t))
	s := snapshot(t, map[string][]string{" /": nil})
	s.Routes[0].RedirectHTTPS = true
	if err := e.Reconcile(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	c := dial(t, e)
	for range 2 { // on one connection
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.response("GET"); resp.StatusCode != 308 || !strings.Contains(body, "HTTPS") {
			t.Errorf("%d %q, want 308", resp.StatusCode, body)
		}
	}
	if n := e.metric(t, "sallyport_http_requests_total", "3xx"); n != 2 {
		t.Errorf("counted %v redirects, want 2", n)
	}
}
