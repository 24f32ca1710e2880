package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sallyport/bench/lab/network"
)

// A process is a contender's program, running.
type process struct {
	cmd     *exec.Cmd
	log     string // the file that takes its output
	started time.Time
	ended   chan struct{}
	err     error // why it ended, once ended is closed
}

// start runs a program on a host. A goroutine waits for its end, which stop brings about.
func start(h *network.Host, log string, argv ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{cmd: h.Command(context.Background(), argv[0], argv[1:]...), log: log, started: time.Now(), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// failed says why the process is no longer there; nil while it runs.
func (p *process) failed() error {
	select {
	case <-p.ended:
		text, err := os.ReadFile(p.log)
		return errors.Join(fmt.Errorf("%s ended: %w\n%s", filepath.Base(p.log), p.err, text[max(0, len(text)-3000):]), err)
	default:
		return nil
	}
}

// kill ends the process and its children at once, as a crash would.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // an error: it has ended
	<-p.ended
}

// A usage is what a process has taken so far.
type usage struct {
	resident, peak int64         // bytes
	cpu            time.Duration // of it and of the children that have ended
}

// clockTick is the unit of /proc/PID/stat: USER_HZ, 100 on every architecture that Go runs on.
const clockTick = 10 * time.Millisecond

func (p *process) usage() (usage, error) {
	dir := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return usage{}, fmt.Errorf("read memory: %w", err)
	}
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return usage{}, fmt.Errorf("read CPU time: %w", err)
	}
	u := usage{resident: kilobytes(string(status), "VmRSS:"), peak: kilobytes(string(status), "VmHWM:")}
	_, rest, _ := strings.Cut(string(stat), ") ") // behind the name, which may hold anything
	for _, ticks := range strings.Fields(rest)[11:15] {
		n, err := strconv.ParseInt(ticks, 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("read CPU time: %w", err)
		}
		u.cpu += time.Duration(n) * clockTick
	}
	return u, nil
}

// kilobytes reads a line of /proc/PID/status, in bytes.
func kilobytes(status, name string) int64 {
	_, rest, _ := strings.Cut(status, name)
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[0], 10, 64) // the kernel writes numbers
	return n << 10
}
