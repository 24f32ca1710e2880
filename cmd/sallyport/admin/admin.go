// Package admin serves read-only views of a running edge: health, readiness and metrics on an address, and to those who may
// open a unix socket its state and where it would send a request.
//
// The address is on loopback by default: nothing there asks who is asking, so nothing there tells more than counts.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sallyport/watcher/model"
)

// Options are what a Server shows.
type Options struct {
	Address string              // host:port to listen on
	Socket  string              // path of the unix socket; empty: none
	Metrics prometheus.Gatherer // served at /metrics
	// Ready returns nil once the edge serves a first snapshot, or what it still waits for. It must be quick.
	Ready func() error
	Views Views // needed with a Socket
}

// Views are what the socket shows. They are called from many goroutines.
type Views interface {
	Status() Status
	// Snapshot is what was published last, or nil.
	Snapshot() *model.Snapshot
	// Explain says where a target such as "http://host/path" leads. The error is for the one who wrote the target.
	Explain(target string) (any, error)
}

// A Server answers /healthz, /readyz and /metrics, and on its socket /v1/status, /v1/snapshot and /v1/explain?target=
// beside.
type Server struct {
	listener net.Listener
	socket   net.Listener // nil without one
	http     *http.Server
	views    *http.Server
}

// Listen binds the address and the socket, so that what is taken is known before anything else starts.
func Listen(o Options) (*Server, error) {
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("admin: %w (choose another with edge.admin.address or --admin-address)", err)
	}
	s := &Server{listener: l, http: newServer(pages(o)), views: newServer(views(o))}
	if o.Socket == "" {
		return s, nil
	}
	if s.socket, err = listenSocket(o.Socket); err != nil {
		return nil, errors.Join(fmt.Errorf("admin: %w", err), l.Close())
	}
	return s, nil
}

func newServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute}
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close stops a server that was not served.
func (s *Server) Close() error {
	err := s.listener.Close()
	if s.socket != nil {
		err = errors.Join(err, s.socket.Close())
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Serve answers until ctx ends, then finishes what it is answering.
func (s *Server) Serve(ctx context.Context) error {
	stopped := make(chan error, 2)
	serve := func(h *http.Server, l net.Listener) { stopped <- h.Serve(l) } // ends with Shutdown or Close below
	go serve(s.http, s.listener)
	if s.socket != nil {
		go serve(s.views, s.socket)
	}
	var err error
	select {
	case err = <-stopped:
		err = fmt.Errorf("admin: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return errors.Join(err, shutdown(grace, s.http), shutdown(grace, s.views), s.Close()) // Shutdown may come before Serve
}

func shutdown(ctx context.Context, h *http.Server) error {
	if err := h.Shutdown(ctx); err != nil {
		return errors.Join(err, h.Close())
	}
	return nil
}

// views are for those who may open the socket.
func views(o Options) http.Handler {
	mux := pages(o)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, o.Views.Status()) })
	mux.HandleFunc("GET /v1/snapshot", func(w http.ResponseWriter, _ *http.Request) {
		if s := o.Views.Snapshot(); s != nil {
			writeJSON(w, s)
			return
		}
		http.Error(w, "there is no snapshot yet", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		answer, err := o.Views.Explain(r.URL.Query().Get("target"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, answer)
	})
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // an error is the client's going away
}

// pages are the paths that kubelet probes and Prometheus use by custom.
func pages(o Options) *http.ServeMux {
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
