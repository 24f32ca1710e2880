// Package demo is a cluster without a cluster: manifests built into the binary, and their pods as servers in this
// process on loopback addresses.
package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	_ "embed"

	"golang.org/x/sync/errgroup"

	"sallyport/watcher/objects"
)

//go:embed manifests.yaml
var manifests []byte

// A Cluster is the demo's objects with a running server for each of their endpoints. It is a watcher.Source.
type Cluster struct {
	objects objects.Cluster
	pods    []pod
}

// pod is a server that answers every request with its name, as agnhost serve-hostname does.
type pod struct {
	name     string
	listener net.Listener
}

// Start reads the manifests and binds the pods' addresses.
func Start() (*Cluster, error) {
	m := objects.Parse("demo.yaml", manifests)
	if len(m.Errors) > 0 {
		panic("BUG: built-in manifest " + m.Errors[0].Error())
	}
	secret, err := newSecret()
	if err != nil {
		return nil, fmt.Errorf("demo: make a certificate: %w", err)
	}
	m.Objects.Secrets = append(m.Objects.Secrets, secret)
	c := &Cluster{objects: m.Objects}
	for _, slice := range c.objects.EndpointSlices {
		for _, e := range slice.Endpoints {
			addr := fmt.Sprintf("%s:%d", e.Addresses[0], *slice.Ports[0].Port)
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("demo: pod %s: %w (is another demo running?)", e.TargetRef.Name, err), c.Close())
			}
			c.pods = append(c.pods, pod{e.TargetRef.Name, l})
		}
	}
	return c, nil
}

// Close unbinds the pods of a Cluster that was not run.
func (c *Cluster) Close() error {
	var errs []error
	for _, p := range c.pods {
		errs = append(errs, p.listener.Close())
	}
	return errors.Join(errs...)
}

// Objects implements watcher.Source.
func (c *Cluster) Objects() (objects.Cluster, bool) { return c.objects, true }

// Run implements watcher.Source: it serves the pods until ctx ends.
func (c *Cluster) Run(ctx context.Context, changed func()) error {
	changed()
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range c.pods {
		g.Go(func() error { return p.serve(ctx) })
	}
	return g.Wait()
}

func (p pod) serve(ctx context.Context) error {
	s := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, p.name) }),
		ReadHeaderTimeout: 5 * time.Second,
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("demo: pod %s: %w", p.name, err)
	}
	return nil
}
