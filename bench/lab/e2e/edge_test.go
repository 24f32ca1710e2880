package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sallyport/bench/lab/build"
	"sallyport/bench/lab/cluster"
)

// An edge is a running sallyport on an edge host.
type edge struct {
	host *cluster.Host
	dir  string // its configuration and log
	cmd  *exec.Cmd
	done chan error
}

// program is the sallyport binary under test.
var program string

// buildProgram compiles it once for the run.
func buildProgram(dir string) error {
	program = filepath.Join(dir, "sallyport")
	return build.Command(context.Background(), "sallyport/cmd/sallyport", program)
}

// startEdge runs sallyport on the host and waits for its first snapshot to be applied.
func startEdge(host *cluster.Host, dir, config string, source []string) (*edge, error) {
	e, err := launchEdge(host, dir, config, source)
	if err != nil {
		return nil, err
	}
	if err := e.waitReady(); err != nil {
		return nil, errors.Join(err, e.stop(), errors.New(e.log()))
	}
	return e, nil
}

// launchEdge runs sallyport on the host and waits for nothing.
func launchEdge(host *cluster.Host, dir, config string, source []string) (*edge, error) {
	e := &edge{host: host, dir: dir, done: make(chan error, 1)}
	if err := os.WriteFile(e.file("sallyport.yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(e.file("log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	e.cmd = host.Command(context.Background(), program, append([]string{"run", "--config", e.file("sallyport.yaml")}, source...)...)
	e.cmd.Stderr = log
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { e.done <- e.cmd.Wait() }()
	return e, nil
}

// diesWithin waits until sallyport has ended by itself or the time is over, whichever comes first.
func (e *edge) diesWithin(d time.Duration) {
	select {
	case err := <-e.done:
		e.done <- err
	case <-time.After(d):
	}
}

func (e *edge) file(name string) string { return filepath.Join(e.dir, name) }

func (e *edge) log() string {
	data, err := os.ReadFile(e.file("log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (e *edge) waitReady() error {
	return within(20*time.Second, func() error {
		select {
		case err := <-e.done:
			e.done <- err
			return nil // ended: found out by the next line of the caller's
		default:
		}
		_, err := e.admin("/readyz")
		return err
	})
}

// admin gets a page of the admin address, which only the edge itself reaches.
func (e *edge) admin(path string) (string, error) {
	a := get(e.host, "http://127.0.0.1:9440"+path, "")
	if a.err == nil && a.code != http.StatusOK {
		return a.body, fmt.Errorf("%s: %d: %s", path, a.code, strings.TrimSpace(a.body))
	}
	return a.body, a.err
}

// stop ends sallyport as systemd would. Rules stay.
func (e *edge) stop() error {
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-e.done:
		e.done <- err
		return err
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("sallyport did not stop within 20 s of SIGTERM"), e.cmd.Process.Kill())
	}
}

// cleanup runs sallyport cleanup and returns what it says.
func (e *edge) cleanup(ctx context.Context) (string, error) {
	out, err := e.host.Command(context.WithoutCancel(ctx), program, "cleanup", "--config", e.file("sallyport.yaml")).CombinedOutput()
	return string(out), err
}

// within tries until cond returns nil, and gives its last error when the time is over.
func within(limit time.Duration, cond func() error) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}
