// Package admin serves read-only views of a running edge: health, readiness and metrics.
//
// It listens on loopback by default: nothing here asks who is asking.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options are what a Server shows.
type Options struct {
	Address string              // host:port to listen on
	Metrics prometheus.Gatherer // served at /metrics
	// Ready returns nil once the edge serves a first snapshot, or what it still waits for. It must be quick.
	Ready func() error
}

// A Server answers /healthz, /readyz and /metrics.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen binds the address, so that a port that is taken is known before anything else starts.
func Listen(o Options) (*Server, error) {
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("admin: %w (choose another with edge.admin.address or --admin-address)", err)
	}
	return &Server{listener: l, http: &http.Server{Handler: handler(o), ReadHeaderTimeout: 5 * time.Second}}, nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close stops a server that was not served.
func (s *Server) Close() error { return s.listener.Close() }

// Serve answers until ctx ends, then finishes what it is answering.
func (s *Server) Serve(ctx context.Context) error {
	stopped := make(chan error, 1)
	go func() { stopped <- s.http.Serve(s.listener) }() // ends with Shutdown or Close below
	select {
	case err := <-stopped:
		return fmt.Errorf("admin: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// handler has the paths that kubelet probes and Prometheus use by custom.
func handler(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{}))
	return mux
}
