package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sallyport/bench/lab/network"
)

// Required is the environment variable that, set to "required", makes tests fail where this machine cannot run a lab;
// otherwise they are skipped and say what it lacks.
const Required = "SALLYPORT_LAB"

// A Shared is the one cluster of a test binary. It is started when the first test asks for it:
//
//	var lab = cluster.Shared{Options: cluster.Options{Nodes: 2, Edges: 2}}
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
//	func TestIngress(t *testing.T) { c := lab.Cluster(t) ... }
type Shared struct {
	// Options of the cluster. An empty Name is replaced by one made of the test binary's.
	Options Options

	mu      sync.Mutex
	started bool // with success or not
	cluster *Cluster
	err     error
}

// Main runs the tests and stops the cluster after them, also when the process is interrupted. It returns the exit code.
func (s *Shared) Main(m *testing.M) int {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() { // ends with the process
		<-interrupted
		if err := s.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the lab:", err)
		}
		os.Exit(130)
	}()
	code := m.Run()
	if err := s.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the lab:", err)
		return max(code, 1)
	}
	return code
}

// stop is Stop for a cluster that may not have been started; no test gets one afterwards.
func (s *Shared) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.started, s.err = true, errors.New("the tests are over")
	}
	if s.cluster == nil {
		return nil
	}
	defer func() { s.cluster = nil }()
	return s.cluster.Stop()
}

// Cluster returns the cluster. It skips the test where this machine cannot run one (see Required), and fails it if
// the cluster did not start or has lost a program meanwhile.
func (s *Shared) Cluster(t testing.TB) *Cluster {
	t.Helper()
	RequireLab(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.cluster, s.err = startFree(s.Options)
		s.started = true
	}
	if s.err != nil {
		t.Fatal(s.err)
	}
	if err := s.cluster.Err(); err != nil {
		t.Fatal(err)
	}
	return s.cluster
}

// RequireLab skips the test on a machine that cannot run a lab, or fails it if the variable Required demands one.
func RequireLab(t testing.TB) {
	t.Helper()
	switch err := network.Requirements(); {
	case err == nil:
	case os.Getenv(Required) == "required":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// testPrefix begins the names of labs that tests start. Nobody looks at one after its tests are over.
const testPrefix = "test-"

// startFree starts the cluster under the first name that is free: the same test may run twice at a time. What test
// runs that crashed have left is removed first.
func startFree(o Options) (*Cluster, error) {
	if err := removeCrashed(); err != nil {
		return nil, err
	}
	if o.Name == "" {
		o.Name = testPrefix + strings.TrimSuffix(filepath.Base(os.Args[0]), ".test")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	name := o.Name
	for i := 2; ; i++ {
		c, err := Start(context.Background(), o)
		if !errors.Is(err, errUp) || i > maxSameName {
			return c, err
		}
		o.Name = fmt.Sprintf("%s-%d", name, i)
	}
}

// removeCrashed takes down the labs of tests that have no owner any more.
func removeCrashed() error {
	labs, err := List()
	if err != nil {
		return err
	}
	for _, s := range labs {
		if s.Owner != 0 || !strings.HasPrefix(s.Name, testPrefix) {
			continue
		}
		if err := Down(s.Name); err != nil && !errors.Is(err, errUp) { // another run does the same
			return err
		}
	}
	return nil
}

// maxSameName bounds how many labs of one test binary may be up at once.
const maxSameName = 8
