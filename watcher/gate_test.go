package watcher

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"

	"k8s.io/client-go/rest"
)

// through sends a request through the gate of a connection to h, which is open.
func through(t *testing.T, path string, h func(c *connection, w http.ResponseWriter)) (*connection, *http.Response, error) {
	t.Helper()
	var c *connection
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { h(c, w) }))
	t.Cleanup(server.Close)
	c, err := newConnection(&rest.Config{Host: server.URL}, testOptions(slog.New(slog.DiscardHandler)), new(identity))
	if err != nil {
		t.Fatal(err)
	}
	c.gate.pass()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.transport.RoundTrip(request)
	if err == nil {
		_, _ = io.ReadAll(response.Body)
		_ = response.Body.Close()
	}
	return c, response, err
}

func TestGateHoldsBackLateAnswers(t *testing.T) {
	_, _, err := through(t, "/", func(c *connection, w http.ResponseWriter) {
		c.gate.close()
		_, _ = io.WriteString(w, "another cluster's")
	})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}

func TestGateClosesWhenAWatchEnds(t *testing.T) {
	for path, want := range map[string]bool{"/services?watch=true": false, "/services": true} {
		c, response, err := through(t, path, func(_ *connection, w http.ResponseWriter) { _, _ = io.WriteString(w, "{}") })
		if err != nil || response.StatusCode != http.StatusOK || c.gate.isOpen() != want {
			t.Errorf("%s: the gate is open: %v, want %v (%v, %v)", path, c.gate.isOpen(), want, response, err)
		}
	}
}

func TestGateClosesOnRejectedCredentials(t *testing.T) {
	for code, want := range map[int]bool{http.StatusUnauthorized: false, http.StatusForbidden: true, http.StatusInternalServerError: true} {
		c, response, err := through(t, "/services", func(_ *connection, w http.ResponseWriter) { w.WriteHeader(code) })
		if err != nil || response.StatusCode != code || c.gate.isOpen() != want {
			t.Errorf("%d: the gate is open: %v, want %v (%v, %v)", code, c.gate.isOpen(), want, response, err)
		}
	}
}

func TestGateWaitEndsWithContext(t *testing.T) {
	g := newGate()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("closed: %v", err)
	}
	g.pass()
	if err := g.wait(t.Context()); err != nil {
		t.Errorf("open: %v", err)
	}
	g.close()
	g.close()
	if g.isOpen() || len(g.shut) != 1 {
		t.Errorf("open %v, %d probes are due, want 1", g.isOpen(), len(g.shut))
	}
}

func TestIdentity(t *testing.T) {
	var i identity
	for _, step := range []struct {
		uid  string
		want string
	}{
		{"", ""}, {"one", ""}, {"one", ""}, {"", "namespace kube-system is missing"},
		{"two", "another cluster: its namespace kube-system has UID two, ours has one"}, {"one", ""},
	} {
		got := ""
		if err := i.check(step.uid); err != nil {
			got = err.Error()
		}
		if got != step.want {
			t.Errorf("UID %q: got %q, want %q", step.uid, got, step.want)
		}
	}
	i.expect("two")
	if !i.matches("one") || !i.matches("") || i.matches("two") {
		t.Error("the identity was changed")
	}
}
