package watcher

import (
	"io"
	"net/http"
	"strconv"
)

// observed sends the requests of a connection through its gate, and takes note of how they went.
type observed struct {
	http.RoundTripper
	c *connection
}

// RoundTrip passes the request on.
func (t observed) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	if ctx.Value(probing{}) == nil {
		if err := t.c.gate.wait(ctx); err != nil {
			return nil, err
		}
	}
	response, err := t.RoundTripper.RoundTrip(r)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		t.c.requestFailed("none")
		t.c.unreached(err) // at once: client-go tries again some requests before it returns
		t.c.gate.close()   // afterwards: what opens it again takes the error back
		return nil, err
	case response.StatusCode >= http.StatusBadRequest:
		t.c.requestFailed(strconv.Itoa(response.StatusCode))
	}
	if response.StatusCode == http.StatusUnauthorized {
		t.c.gate.close() // for all kinds alike: one request at a time finds out when the credentials are good again
	}
	t.c.contacted()
	response.Body = contactBody{response.Body, t.c}
	return response, nil
}

// contactBody is the body of a response; what is read from it is a contact with the API server.
type contactBody struct {
	io.ReadCloser
	c *connection
}

// Read reads.
func (b contactBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.c.contacted()
	}
	return n, err
}
