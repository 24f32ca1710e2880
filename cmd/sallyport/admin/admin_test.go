package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPages(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "sallyport_test", Help: "A metric."}))
	ready := errors.New("waiting for the first snapshot")
	s, err := Listen(Options{Address: "127.0.0.1:0", Metrics: registry, Ready: func() error { return ready }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	check := func(path string, code int, body string) {
		t.Helper()
		resp, err := http.Get("http://" + s.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != code || !strings.Contains(string(got), body) {
			t.Errorf("%s: %d %q %v, want %d and %q", path, resp.StatusCode, got, err, code, body)
		}
	}
	check("/healthz", http.StatusOK, "ok")
	check("/readyz", http.StatusServiceUnavailable, "waiting for the first snapshot")
	ready = nil
	check("/readyz", http.StatusOK, "ok")
	check("/metrics", http.StatusOK, "sallyport_test 0")
	check("/", http.StatusNotFound, "")
	stop()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestListenNamesTheRemedy(t *testing.T) {
	s, err := Listen(Options{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = Listen(Options{Address: s.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "edge.admin.address") {
		t.Errorf("a port that is taken: %v", err)
	}
}
