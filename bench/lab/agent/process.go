package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
)

// processSpec describes one container's process.
type processSpec struct {
	netNS    string // path
	hostname string
	dir      string
	argv     []string // the program's path, then its arguments
	env      []string
	output   *os.File // stdout and stderr
	root     string   // an empty folder, for a root with mounts
	mounts   []bindMount
}

// process is a running container. It is process 1 of a PID namespace, so whatever it started dies with it.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; then cmd.ProcessState is set
}

// launcher starts every container of an agent from one OS thread that lives as long as the agent. The containers'
// PDEATHSIG fires when the *thread* that forked them ends, and Go ends other threads when it likes.
type launcher struct {
	requests chan launch
}

type launch struct {
	cmd    *exec.Cmd
	result chan error
}

func newLauncher() *launcher {
	l := &launcher{requests: make(chan launch)}
	go func() {
		runtime.LockOSThread()
		for r := range l.requests {
			r.result <- r.cmd.Start()
		}
	}()
	return l
}

// stop ends the launcher's thread, and with it every container that still runs.
func (l *launcher) stop() { close(l.requests) }

// start runs the agent's own program as [PodInit] in new namespaces, which becomes the container.
func (l *launcher) start(spec processSpec) (*process, error) {
	args, err := spec.podInit()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = spec.env
	cmd.Stdout, cmd.Stderr = spec.output, spec.output
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	r := launch{cmd: cmd, result: make(chan error)}
	l.requests <- r
	if err := <-r.result; err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.argv[0], err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

// podInit returns the arguments of [PodInit].
func (s processSpec) podInit() ([]string, error) {
	args := []string{PodInitCommand, "-netns", s.netNS, "-hostname", s.hostname, "-dir", s.dir}
	if len(s.mounts) > 0 {
		mounts, err := json.Marshal(s.mounts)
		if err != nil {
			return nil, fmt.Errorf("encode mounts: %w", err)
		}
		args = append(args, "-root", s.root, "-mounts", string(mounts))
	}
	return append(append(args, "--"), s.argv...), nil
}

func (p *process) wait() {
	// The error repeats what ProcessState says: there is no pipe that could fail.
	_ = p.cmd.Wait()
	close(p.done)
}

// signal sends s; a process that has just ended does not mind.
func (p *process) signal(s syscall.Signal) error {
	err := p.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// exitCode is what a container runtime reports: the exit status, or 128 plus the signal's number. Call it after done.
func (p *process) exitCode() (code, signal int32) {
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int32(status.Signal()), int32(status.Signal())
	}
	return int32(status.ExitStatus()), 0
}

// command returns a program to be run inside the container's namespaces.
func (p *process) command(argv ...string) *exec.Cmd {
	target := strconv.Itoa(p.cmd.Process.Pid)
	args := []string{"--target", target, "--net", "--uts", "--mount", "--pid", "--"}
	cmd := exec.Command("nsenter", append(args, argv...)...)
	cmd.Env = p.cmd.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}
