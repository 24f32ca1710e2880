package agent

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestContainersDieWithTheAgent kills a program that has started a container, as the lab's user may.
func TestContainersDieWithTheAgent(t *testing.T) {
	requireRoot(t)
	agent := exec.Command(executable(t), "launch")
	out, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	up, pid := false, ""
	for lines := bufio.NewScanner(out); !(up && pid != "") && lines.Scan(); {
		if line := lines.Text(); line == "up" {
			up = true
		} else {
			pid = line
		}
	}
	if !up || pid == "" {
		t.Fatalf("container did not start: up %v, process %q", up, pid)
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 1)) // end of file: agent, container and its child have closed the pipe
	state, err := agent.Process.Wait()
	if err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("agent ended with %v, %v", state, err)
	}
	waitGone(t, pid)
}

// waitGone waits until a process, whose parent is not ours, is no more than a zombie.
func waitGone(t *testing.T, pid string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s still runs: %s", pid, stat)
		}
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
