package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// tailBytes is how much of a program's log is shown with its failure.
const tailBytes = 3000

// A program is one of the lab's long-running processes: an etcd, a kube-proxy and so on. It may be stopped and
// started again.
type program struct {
	name    string                                    // unique in the lab, for example kube-proxy@node-1
	command func(ctx context.Context) *exec.Cmd       // prepares one run
	log     string                                    // the file that takes its output
	failed  func(name string, tail string, err error) // told when it ends without having been stopped

	mu       sync.Mutex
	cmd      *exec.Cmd // nil while it does not run
	ended    chan struct{}
	stopping bool
}

// start starts the program if it does not run. A goroutine waits for its end.
func (p *program) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.log), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := p.command(context.Background())
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.cmd, p.ended, p.stopping = cmd, make(chan struct{}), false
	go p.wait(cmd, p.ended)
	return nil
}

func (p *program) wait(cmd *exec.Cmd, ended chan struct{}) {
	err := cmd.Wait()
	p.mu.Lock()
	p.cmd = nil
	stopping := p.stopping
	p.mu.Unlock()
	if !stopping {
		p.failed(p.name, tail(p.log), err)
	}
	close(ended)
}

// expectEnd makes the program's end no failure.
func (p *program) expectEnd() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopping = true
}

// stop kills the program and its group, as a power cut would, and returns when it is gone.
func (p *program) stop() error {
	p.mu.Lock()
	p.stopping = true
	cmd, ended := p.cmd, p.ended
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-ended
	return nil
}

// tail returns the end of a text file; what cannot be read is said in its place.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(text) > tailBytes {
		text = text[len(text)-tailBytes:]
	}
	return strings.TrimSpace(string(text))
}
