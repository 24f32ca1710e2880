package watcher

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"
)

// Client returns the configuration of a client that always goes to the API server that is being watched, with the
// credentials that the kubeconfig has at the time of each request. Its requests wait while that one is away, and never
// reach another cluster's.
func (a *API) Client() (*rest.Config, error) {
	server, err := a.current.Load().url()
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:      (&url.URL{Scheme: server.Scheme, Host: server.Host}).String(), // for errors: RoundTrip has the last word
		UserAgent: a.current.Load().config.UserAgent,
		Transport: following{a},
	}, nil
}

// url is the API server's, with the path that its requests begin with.
func (c *connection) url() (*url.URL, error) {
	server, _, err := rest.DefaultServerUrlFor(c.config)
	if err != nil {
		return nil, fmt.Errorf("read the server of the kubeconfig: %w", err)
	}
	return server, nil
}

// following is a transport that leads to the current connection's API server.
type following struct{ api *API }

// RoundTrip sends the request.
func (f following) RoundTrip(r *http.Request) (*http.Response, error) {
	c := f.api.current.Load()
	server, err := c.url()
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host, r.Host = server.Scheme, server.Host, ""
	r.URL.Path = strings.TrimSuffix(server.Path, "/") + r.URL.Path
	return c.transport.RoundTrip(r)
}
