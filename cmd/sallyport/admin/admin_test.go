package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher"
	"sallyport/watcher/model"
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

// fixed is a Views of an edge that stands still.
type fixed struct{ snapshot *model.Snapshot }

func (f fixed) Status() Status {
	contact := time.Now().Add(-time.Minute)
	return Status{Edge: "edge-1", Version: "v1", Started: contact, Dataplane: "iptables", Reach: "auto",
		Clusters: []watcher.Health{{Cluster: "lab", Server: "https://192.0.2.9:6443", LastContact: contact, Stale: true, File: "objects.yaml",
			Written: contact, LastError: "connection refused", CredentialExpiry: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)}},
		Snapshot: Snapshot{Generation: 3, Published: contact, Stale: true, Nodes: 2, Services: 5, VIPs: 1, Routes: 4},
		Lanes:    []Lane{{Name: "edge", Generation: 2, Error: "rules: no"}}, Writer: &Writer{Leader: "edge-2"},
		Problems: []model.Problem{{Object: model.ObjectRef{Kind: "Service", Namespace: "shop", Name: "web"}, Field: "spec.ports[0]", Reason: model.ReasonPortConflict, Message: "taken"}},
	}
}
func (f fixed) Snapshot() *model.Snapshot { return f.snapshot }
func (f fixed) Explain(target string) (any, error) {
	if target == "" {
		return nil, errors.New("no target: give a URL")
	}
	return map[string]string{"target": target}, nil
}

func serve(t *testing.T, o Options) {
	o.Address, o.Metrics, o.Ready = "127.0.0.1:0", prometheus.NewRegistry(), func() error { return nil }
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Stat(o.Socket); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind: %v", err)
		}
	})
}

func TestSocketShowsTheViews(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "admin.sock")
	serve(t, Options{Socket: socket, Views: fixed{}})
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket is open to others: %v %v", info.Mode(), err)
	}
	c := Client{socket}
	var status Status
	if err := c.Get(t.Context(), "/v1/status", nil, &status); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := status.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	want := `edge       edge-1, v1, up 1m0s, dataplane iptables, reach auto
ready      yes
cluster    lab at https://192.0.2.9:6443, away, last answered 1m0s ago, served from objects.yaml of 1m0s ago, connection refused, credentials valid until 2027-01-02
snapshot   generation 3, 1m0s old, stale: 2 nodes, 5 Services, 1 VIPs, 4 routes, 0 certificates
lane edge  generation 2 applied, 3 published; rules: no
writer     edge-2 writes addresses and Events to the cluster
problems   1 PortConflict
           Service shop/web: spec.ports[0]: taken (PortConflict)
`
	if text.String() != want {
		t.Errorf("got\n%swant\n%s", text.String(), want)
	}
	var answer map[string]string
	if err := c.Get(t.Context(), "/v1/explain", url.Values{"target": {"http://a b/?x=1&y"}}, &answer); err != nil || answer["target"] != "http://a b/?x=1&y" {
		t.Errorf("explain: %v %v", answer, err)
	}
	if err := c.Get(t.Context(), "/v1/explain", nil, &answer); err == nil || err.Error() != "no target: give a URL" {
		t.Errorf("explain nothing: %v", err)
	}
	if err := c.Get(t.Context(), "/v1/snapshot", nil, &answer); err == nil || !strings.Contains(err.Error(), "no snapshot yet") {
		t.Errorf("snapshot: %v", err)
	}
}

func TestASecondEdgeIsToldOfTheFirst(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	serve(t, Options{Socket: socket, Views: fixed{}})
	_, err := Listen(Options{Address: "127.0.0.1:0", Socket: socket})
	if err == nil || !strings.Contains(err.Error(), "another edge runs on this machine") {
		t.Errorf("error %v", err)
	}
}

func TestASocketLeftBehindIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as after kill -9
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := (Client{socket}).Get(t.Context(), "/v1/status", nil, nil); err == nil || !strings.Contains(err.Error(), "no edge runs") {
		t.Errorf("error %v", err)
	}
	serve(t, Options{Socket: socket, Views: fixed{}})
}

// TestABusyEdgeKeepsItsSocket has more clients wait for an edge than its queue takes: it is slow, but there.
func TestABusyEdgeKeepsItsSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the queue of 0 takes one
		if c, err := net.Dial("unix", socket); err == nil {
			defer c.Close()
		}
	}
	_, err = Listen(Options{Address: "127.0.0.1:0", Socket: socket, Views: fixed{}})
	if err == nil || !strings.Contains(err.Error(), "another edge runs on this machine") {
		t.Errorf("the socket of a busy edge is taken: %v", err)
	}
}
