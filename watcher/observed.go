package watcher

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"syscall"
)

// observed sends the requests of a connection through its gate, and takes note of how they went.
type observed struct {
	http.RoundTripper
	c *connection
}

// errHeldBack is the error of a response that came after the gate was closed: it may be another cluster's. An informer
// that finds a connection refused begins its watch again where it was, and does not list everything anew.
var errHeldBack = fmt.Errorf("held back, the API server is in doubt: %w", syscall.ECONNREFUSED)

// RoundTrip passes the request on.
func (t observed) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	probe := ctx.Value(probing{}) != nil
	if !probe {
		if err := t.c.gate.wait(ctx); err != nil {
			return nil, err
		}
	}
	response, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		if ctx.Err() == nil {
			t.c.requestFailed("none")
			t.c.unreached(err) // at once: client-go tries again some requests before it returns
			t.c.gate.close()   // afterwards: what opens it again takes the error back
		}
		return nil, err
	}
	t.c.contacted()
	if response.StatusCode >= http.StatusBadRequest {
		t.failed(response.StatusCode)
	} else if !probe && !t.c.gate.isOpen() {
		return nil, errors.Join(errHeldBack, response.Body.Close())
	}
	response.Body = &contactBody{response.Body, t.c, r.URL.Query().Has("watch")}
	return response, nil
}

// failed takes note of an answer that is a failure.
func (t observed) failed(code int) {
	t.c.requestFailed(strconv.Itoa(code))
	if code == http.StatusUnauthorized {
		t.c.gate.close() // for all kinds alike: one request at a time finds out when the credentials are good again
	}
}

// contactBody is the body of a response; what is read from it is a contact with the API server.
type contactBody struct {
	io.ReadCloser
	c     *connection
	watch bool
}

// Read reads. When a watch ends, the next connection may lead elsewhere, and is probed first.
func (b *contactBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.c.contacted()
	}
	if err != nil && b.watch {
		b.c.gate.close()
	}
	return n, err
}
