package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// TestOutageOfTheAPIServer stops the API server, restarts an edge meanwhile on a machine that has lost its rules, and lets
// the API server come back.
func TestOutageOfTheAPIServer(t *testing.T) {
	s := theSite(t)
	a := newAuthority(t)
	ns := s.secureApp(t, a, "outage.example.com")
	s.Apply(t, ns, strings.Replace(hostnames, "replicas: 3", "replicas: 2", 1)+"---"+strings.Replace(hostnamesService, "30001", "30021", 1))
	s.WaitReady(t, ns, "hostnames", 2)
	e := s.startEdge3(t, "")
	serves := func(pods int) func() error {
		return func() error {
			got, _ := s.getTLS(e, "one.outage.example.com", a.pool())
			return errors.Join(got.err, wantNames(s.client(), e.url(30021), pods))
		}
	}
	cluster.Eventually(t, 10*time.Second, serves(2))
	s.withoutAPIServer(t, func() {
		cluster.Eventually(t, 10*time.Second, func() error { return e.wantMetric(`sallyport_api_up{cluster="default"} 0`) })
		if err := errors.Join(serves(2)(), s.ready(e)); err != nil {
			t.Errorf("without the API server: %v", err)
		}
		if err := e.stop(); err != nil {
			t.Fatal(err)
		}
		if out, err := e.cleanup(t.Context()); err != nil {
			t.Fatalf("cleanup: %v: %s", err, out)
		}
		again, err := s.start(t, "edge-3", "")
		if err != nil {
			t.Fatalf("an edge does not start without the API server: %v", err)
		}
		*e = *again
		cluster.Eventually(t, 5*time.Second, serves(2))
		if err := e.wantMetric(`sallyport_last_good_serving{cluster="default"} 1`); err != nil {
			t.Error(err)
		}
	})
	s.Scale(t, ns, "hostnames", 4)
	s.WaitReady(t, ns, "hostnames", 4)
	cluster.Eventually(t, 30*time.Second, serves(4))
	if err := errors.Join(e.wantMetric(`sallyport_last_good_serving{cluster="default"} 0`), e.wantMetric(`sallyport_api_up{cluster="default"} 1`)); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(e.file("state/objects.yaml")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the last-good file, which holds keys, is open to others: %v %v", info.Mode(), err)
	}
}

// withoutAPIServer runs fn while the API server is stopped, and starts it again whatever fn does.
func (s *site) withoutAPIServer(t *testing.T, fn func()) {
	t.Helper()
	if err := s.StopProgram("kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(s.StartProgram("kube-apiserver"), s.WaitAPI(ctx)); err != nil {
			t.Fatal(err)
		}
	}()
	fn()
}

func (s *site) ready(e *edge) error {
	_, err := e.admin("/readyz")
	return err
}

// wantMetric is nil if the edge's metrics have the line.
func (e *edge) wantMetric(line string) error {
	metrics, err := e.admin("/metrics")
	if err == nil && !strings.Contains(metrics, "\n"+line+"\n") {
		name, _, _ := strings.Cut(line, "{")
		for l := range strings.Lines(metrics) {
			if strings.HasPrefix(l, name) {
				err = errors.Join(err, errors.New(strings.TrimSpace(l)))
			}
		}
		return fmt.Errorf("no metric %s, but %w", line, err)
	}
	return err
}
