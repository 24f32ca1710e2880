package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestServesByHostAndPath(t *testing.T) {
	echo := func(name string) string {
		return httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s %s %s", name, r.Method, r.Host, r.URL.RequestURI())
		})
	}
	e := start(t, Options{})
	e.serve(t, map[string][]string{
		"shop.example.com /":     {echo("root")},
		"shop.example.com /cart": {echo("cart")},
		"*.example.com /":        {echo("wild")},
		"dead.example.com /":     {closedAddr(t)},
		"none.example.com /":     nil,
	})
	for _, tt := range []struct {
		host, target string
		code         int
		want         string
	}{
		{"shop.example.com", "/", 200, "root GET shop.example.com /"},
		{"shop.example.com", "/cart?a=b&c=%zz", 200, "cart GET shop.example.com /cart?a=b&c=%zz"},
		{"Shop.Example.com:8080", "/cart/../x", 200, "root GET shop.example.com:8080 /x"},
		{"a.example.com", "/cart", 200, "wild GET a.example.com /cart"},
		{"other.com", "/", 404, "404 Not Found|Not Found\n\nNothing is served at this host and path.\n"},
		{"none.example.com", "/", 503, "nothing running"},
		{"dead.example.com", "/", 502, "cannot be reached"},
	} {
		c := dial(t, e)
		c.send("GET " + tt.target + " HTTP/1.1\r\nHost: " + tt.host + "\r\n\r\n")
		resp, body := c.response("GET")
		found := false
		for want := range strings.SplitSeq(tt.want, "|") {
			found = found || strings.Contains(body, want)
		}
		if resp.StatusCode != tt.code || !found {
			t.Errorf("%s%s: %d %q, want %d %q", tt.host, tt.target, resp.StatusCode, body, tt.code, tt.want)
		}
		for _, field := range []string{"Server", "Date", "Content-Type"} {
			if len(resp.Header[field]) != 1 {
				t.Errorf("%s%s: %d %s fields, want 1", tt.host, tt.target, len(resp.Header[field]), field)
			}
		}
	}
}

func TestKeepsConnectionsAlive(t *testing.T) {
	e := one(t, httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s:%s", r.Method, body)
	}))
	c := dial(t, e)
	for i := range 20 {
		big := strings.Repeat("x", i*1000)
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(big), big))
		if _, body := c.response("POST"); body != "POST:"+big {
			t.Fatalf("request %d: body of %d bytes, want %d", i, len(body), len("POST:"+big))
		}
		c.send(fmt.Sprintf("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%sy\r\n0\r\n\r\n", len(big)+1, big))
		if _, body := c.response("PUT"); body != "PUT:"+big+"y" {
			t.Fatalf("chunked request %d: body of %d bytes, want %d", i, len(body), len("PUT:"+big)+1)
		}
	}
	if n := e.metric(t, "sallyport_http_upstream_connects_total", "new"); n != 1 {
		t.Errorf("%v connections to the endpoint for 40 requests in a row, want 1", n)
	}
	if n := e.metric(t, "sallyport_http_requests_total", "2xx"); n != 40 {
		t.Errorf("counted %v requests, want 40", n)
	}
	wait(t, "no request is in flight", func() bool { return e.metric(t, "sallyport_http_requests_in_flight") == 0 })
}

// fasthttp would parse a form and write another one.
func TestFormsPassUnchanged(t *testing.T) {
	const form = "--b\r\ncontent-disposition: form-data; name=a\r\n\r\nx\r\n--b--\r\nepilogue"
	c := dial(t, one(t, httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})))
	c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s", len(form), form))
	if _, body := c.response("POST"); body != form {
		t.Errorf("the endpoint got %q, want %q", body, form)
	}
}
