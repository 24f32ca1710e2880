package deb

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/bench/lab/network"
)

// The addresses of the machine and of what is around it: one network, a node in it, and the pods behind that.
const (
	machineAddress = "192.0.2.1"
	clientAddress  = "192.0.2.10"
	nodeAddress    = "192.0.2.20"
	podAddress     = "10.244.1.5"
	vip            = "203.0.113.1"
)

// A machine is a booted Debian, cabled to a network namespace in which clients and pods are.
type machine struct {
	t       *testing.T
	outside *network.Host
	init    string // process identity of its systemd, as seen from here
}

// required skips the test where nobody asked for machines.
func required(t *testing.T) {
	t.Helper()
	if os.Getenv("SALLYPORT_PACKAGE") != "required" {
		t.Skip("it boots a machine, as root: make package-test")
	}
}

// boot starts a machine that finds the folder at /srv, and waits until its systemd has started everything.
func boot(t *testing.T, folder string) *machine {
	t.Helper()
	name := fmt.Sprintf("sallyport-%d", os.Getpid())
	cmd := exec.Command("systemd-nspawn", "--quiet", "--directory", debian(t), "--volatile=overlay", "--machine", name,
		"--register=no", "--keep-unit", "--private-network", "--console=read-only", "--bind-ro", folder+":/srv", "--boot")
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	ended := start(t, cmd)
	m := &machine{t: t}
	t.Cleanup(func() {
		stop := cmd.Process.Pid
		if pid, err := m.findInit(stop); err == nil {
			stop = pid // nspawn clears up behind it and ends
		}
		_ = syscall.Kill(stop, syscall.SIGKILL)
		<-ended
		if m.init == "" {
			t.Logf("console: %s", &console)
		}
	})
	until(t, "the machine boots", func() error {
		pid, err := m.findInit(cmd.Process.Pid)
		if err != nil {
			return err
		}
		m.init = fmt.Sprint(pid)
		state, err := m.command("systemctl", "is-system-running").CombinedOutput()
		if string(state) != "running\n" {
			return fmt.Errorf("the system is %q: %w", state, err)
		}
		return nil
	})
	m.cable(name)
	return m
}

// start runs cmd such that it does not outlive this process. The channel is closed when it has ended.
func start(t *testing.T, cmd *exec.Cmd) <-chan struct{} {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the signal is sent when the thread ends that started the process
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, in the end
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return ended
}

// findInit is the process identity of the only child of nspawn.
func (m *machine) findInit(nspawn int) (pid int, err error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", nspawn))
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(children), &pid)
	return pid, err
}

// cable makes the namespace and the one network of all that is in this test.
func (m *machine) cable(name string) {
	m.t.Helper()
	m.outside = &network.Host{Name: "outside", Lab: name}
	ns := m.outside.NetNS()
	m.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	for _, command := range []string{
		"ip netns add " + ns,
		"ip link add cable netns " + ns + " type veth peer name uplink netns " + m.init,
		"ip -n " + ns + " link set lo up",
		"ip -n " + ns + " address add " + podAddress + "/32 dev lo",
		"ip -n " + ns + " address add " + clientAddress + "/24 dev cable",
		"ip -n " + ns + " address add " + nodeAddress + "/24 dev cable",
		"ip -n " + ns + " link set cable up",
		"ip -n " + ns + " route add " + vip + "/32 via " + machineAddress,
	} {
		argv := strings.Fields(command)
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			m.t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	m.sh("ip address add " + machineAddress + "/24 dev uplink && ip link set uplink up")
}

// command prepares a command on the machine, as root.
func (m *machine) command(argv ...string) *exec.Cmd {
	enter := []string{"--target", m.init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	return exec.Command("nsenter", append(enter, argv...)...)
}

// sh runs a script on the machine, which must succeed, and returns what it prints, without the last newline.
func (m *machine) sh(script string) string {
	m.t.Helper()
	out, err := m.command("sh", "-euc", script).CombinedOutput()
	if err != nil {
		log, _ := m.command("journalctl", "--no-pager", "--unit", "sallyport", "--lines", "20", "--output", "cat").CombinedOutput()
		m.t.Fatalf("%s: %v: %s\njournal: %s", script, err, out, log)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// write makes a file on the machine.
func (m *machine) write(file, content string) {
	m.t.Helper()
	cmd := m.command("sh", "-euc", `mkdir -p "$(dirname "$0")" && cat >"$0"`, file)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("write %s: %v: %s", file, err, out)
	}
}

// in is the machine for a subtest, whose failures they are.
func (m *machine) in(t *testing.T) *machine {
	return &machine{t: t, outside: m.outside, init: m.init}
}

// debian is the folder of a minimal Debian, made on first use.
func debian(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(cache, "sallyport", "debian-bookworm")
	if _, err := os.Stat(folder); err == nil {
		return folder
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	unfinished := fmt.Sprintf("%s.%d", folder, os.Getpid())
	defer func() { _ = os.RemoveAll(unfinished) }()
	out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include=systemd-sysv,dbus,iptables,iproute2",
		"bookworm", unfinished, "http://deb.debian.org/debian").CombinedOutput()
	if err != nil {
		t.Fatalf("debootstrap: %v: %s", err, out[max(0, len(out)-1000):])
	}
	if err := os.Rename(unfinished, folder); err != nil {
		t.Fatal(err)
	}
	return folder
}

// until tries again and again, for half a minute.
func until(t *testing.T, what string, try func() error) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(30 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("waited until %s: %v", what, err)
		}
	}
}
