package agent

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestContainersDieWithTheAgent kills a program that has started a container, as the lab's user may.
func TestContainersDieWithTheAgent(t *testing.T) {
	requireRoot(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	agent := exec.Command(executable(t), "launch")
	agent.Stdout = w
	if err := errors.Join(agent.Start(), w.Close(), r.SetReadDeadline(time.Now().Add(10*time.Second))); err != nil {
		t.Fatal(err)
	}
	up, pid := false, 0
	for lines := bufio.NewScanner(r); (!up || pid == 0) && lines.Scan(); {
		if line := lines.Text(); line == "up" {
			up = true
		} else if pid, err = strconv.Atoi(line); err != nil {
			t.Fatal(err)
		}
	}
	if !up || pid == 0 {
		t.Fatalf("container did not start: up %v, process %d", up, pid)
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := agent.Wait(); agent.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("agent ended with %v", err)
	}
	// End of file only when the container and the container's child have closed the pipe.
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("container outlives its agent: read from it: %v; kill: %v", err, syscall.Kill(pid, syscall.SIGKILL))
	}
}

func TestExitCode(t *testing.T) {
	requireRoot(t)
	l := newLauncher()
	defer l.stop()
	for _, tt := range []struct {
		script       string
		code, signal int32
	}{
		{"exit 0", 0, 0},
		{"exit 42", 42, 0},
		{"exec no-such-program", 127, 0},
	} {
		p, err := l.start(processSpec{netNS: "/proc/self/ns/net", hostname: "x", argv: []string{"/bin/sh", "-c", tt.script}})
		if err != nil {
			t.Fatal(err)
		}
		<-p.done
		if code, signal := p.exitCode(); code != tt.code || signal != tt.signal {
			t.Errorf("%q: exit code %d, signal %d, want %d, %d", tt.script, code, signal, tt.code, tt.signal)
		}
	}
	p, err := l.start(processSpec{netNS: "/proc/self/ns/net", hostname: "x", argv: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	<-p.done
	if code, signal := p.exitCode(); code != 137 || signal != 9 {
		t.Errorf("killed: exit code %d, signal %d, want 137, 9", code, signal)
	}
}
