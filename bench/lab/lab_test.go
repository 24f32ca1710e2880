package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/bench/lab/build"
	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

// program builds the command, as a user would run it.
func program(t *testing.T) string {
	t.Helper()
	cluster.RequireLab(t)
	path := filepath.Join(t.TempDir(), "lab")
	if err := build.Command(t.Context(), build.LabCommand, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// labName makes a lab's name that only this run of the tests uses. Labs of names that begin with "test-" are removed
// by a later run if this one crashes.
func labName(name string) string { return fmt.Sprintf("test-%s-%d", name, os.Getpid()) }

// A running is an up in progress.
type running struct {
	cmd   *exec.Cmd
	ended chan error
}

// startUp starts a lab of one node and one edge, and returns when it says that it is ready.
func startUp(t *testing.T, program, name string) *running {
	t.Helper()
	cmd := exec.Command(program, "up", "--name", name, "--nodes", "1", "--edges", "1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Down(name); err != nil {
			t.Error(err)
		}
	})
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		ready = strings.HasPrefix(lines.Text(), "VIPs are free")
	}
	r := &running{cmd, make(chan error, 1)}
	go func() { r.ended <- cmd.Wait() }()
	if !ready {
		t.Fatalf("up ended before it was ready: %v", <-r.ended)
	}
	return r
}

// run runs the command to its end and returns its output and exit code.
func run(t *testing.T, program string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// remains lists all that can be seen of a lab: namespaces, links, files, processes.
func remains(t *testing.T, name string) []string {
	t.Helper()
	found, err := network.Namespaces(name)
	if err != nil {
		t.Fatal(err)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		alias, err := os.ReadFile("/sys/class/net/" + link.Name + "/ifalias")
		if err == nil && strings.TrimSpace(string(alias)) == "sallyport lab "+name {
			found = append(found, "link "+link.Name)
		}
	}
	if files, err := filepath.Glob("/var/lib/sallyport-lab/" + name); err != nil || len(files) > 0 {
		found = append(found, fmt.Sprint(files, err))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/sallyport-lab/"+name+"/") {
			found = append(found, "mount "+line)
		}
	}
	return append(found, remainingProcesses(t, name)...)
}

// remainingProcesses finds processes by what they were called with, and by the environment, which pods have too.
func remainingProcesses(t *testing.T, name string) []string {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(processes) == 0 {
		t.Fatalf("list processes: %v", err)
	}
	var found []string
	for _, dir := range processes {
		cmdline, _ := os.ReadFile(dir + "/cmdline") // it may have ended meanwhile
		environ, _ := os.ReadFile(dir + "/environ")
		if bytes.Contains(cmdline, []byte("sallyport-lab/"+name+"/")) || bytes.Contains(cmdline, []byte("sp."+name+".")) ||
			bytes.Contains(environ, []byte(network.LabVariable+"="+name+"\x00")) {
			found = append(found, fmt.Sprintf("process %s: %q", dir, cmdline))
		}
	}
	return found
}

const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{
	"containers":[{"name":"web","image":"agnhost","args":["netexec"],"volumeMounts":[{"name":"memory","mountPath":"/memory-test"}]}],
	"volumes":[{"name":"memory","emptyDir":{"medium":"Memory"}}]}}`

// startPod runs a pod, so that there is more to remove than what up made itself.
func startPod(t *testing.T, program, name string) {
	t.Helper()
	script := "echo '" + pod + "' | kubectl apply -f - && kubectl wait --for=condition=Ready pod/web --timeout=30s"
	if out, code := run(t, program, "exec", "--name", name, "control", "--", "sh", "-c", script); code != 0 {
		t.Fatalf("run a pod: exit code %d: %s", code, out)
	}
}

func TestDownAfterACrashLeavesNothing(t *testing.T) {
	lab := program(t)
	name := labName("crash")
	up := startUp(t, lab, name)
	startPod(t, lab, name)
	if seen := strings.Join(remains(t, name), "\n"); !strings.Contains(seen, "netexec") || !strings.Contains(seen, "link splab") || !strings.Contains(seen, "mount tmpfs") {
		t.Fatalf("the pod, the link or the volume of a running lab is not seen, but\n%s", seen)
	}
	if err := up.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-up.ended; err == nil {
		t.Error("up ended well although it was killed")
	}
	if out, _ := run(t, lab, "list"); !strings.Contains(out, "no: remove it with lab down --name "+name) {
		t.Errorf("list does not tell of the crashed lab: %s", out)
	}
	if out, code := run(t, lab, "down", "--name", name); code != 0 {
		t.Fatalf("down: exit code %d: %s", code, out)
	}
	if left := remains(t, name); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if out, code := run(t, lab, "down", "--name", name); code != 0 {
		t.Errorf("a second down: exit code %d: %s", code, out)
	}
}

func TestTwoLabsAtOnceAndInterrupt(t *testing.T) {
	lab := program(t)
	first, second := labName("one"), labName("two")
	one, two := startUp(t, lab, first), startUp(t, lab, second)
	if out, code := run(t, lab, "up", "--name", first); code == 0 || !strings.Contains(out, "already up") {
		t.Errorf("a second lab of the same name: exit code %d: %s", code, out)
	}
	if err := one.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-one.ended; err != nil {
		t.Errorf("interrupted up: %v", err)
	}
	if left := remains(t, first); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	startPod(t, lab, second) // unharmed by the end of the other
	if out, code := run(t, lab, "down", "--name", second); code != 0 {
		t.Errorf("down of a lab that is up: exit code %d: %s", code, out)
	}
	if err := <-two.ended; err != nil {
		t.Errorf("up that was taken down: %v", err)
	}
	if left := remains(t, second); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func TestExecAndOutages(t *testing.T) {
	lab := program(t)
	name := labName("exec")
	startUp(t, lab, name)
	t.Run("exec", func(t *testing.T) { testExec(t, lab, name) })
	t.Run("outages", func(t *testing.T) { testOutages(t, lab, name) })
}

// testOutages has an API server, a node and a cable go and come back at the command of another process.
func testOutages(t *testing.T, lab, name string) {
	nodes := []string{"exec", "control", "--", "kubectl", "get", "nodes", "--request-timeout=5s"}
	for _, tt := range []struct {
		args []string
		out  string
		code int
	}{
		{[]string{"stop", "kube-apiserver"}, "", 0},
		{nodes, "was refused", 1},
		{[]string{"start", "kube-apiserver"}, "", 0},
		{[]string{"stop", "node-1"}, "", 0},
		{[]string{"exec", "node-1", "--", "cat", "/sys/class/net/nodes/carrier"}, "0", 0},
		{[]string{"start", "node-1"}, "", 0},
		{[]string{"exec", "node-1", "--", "cat", "/sys/class/net/nodes/carrier"}, "1", 0},
		{nodes, "node-1   Ready", 0},
		{[]string{"cut", "edge-1", "clients"}, "", 0},
		{[]string{"exec", "edge-1", "--", "cat", "/sys/class/net/clients/carrier"}, "0", 0},
		{[]string{"mend", "edge-1", "clients"}, "", 0},
		{[]string{"exec", "edge-1", "--", "cat", "/sys/class/net/clients/carrier"}, "1", 0},
		{[]string{"stop", "nginx"}, `stop program "nginx": the lab runs [agent@node-1 etcd`, 1},
		{[]string{"cut", "client", "nodes"}, `the host has no link "nodes"`, 1},
	} {
		args := append([]string{tt.args[0], "--name", name}, tt.args[1:]...)
		if out, code := run(t, lab, args...); !strings.Contains(out, tt.out) || code != tt.code {
			t.Errorf("%q: got %q and exit code %d, want %q and %d", tt.args, out, code, tt.out, tt.code)
		}
	}
}

func testExec(t *testing.T, lab, name string) {
	for _, tt := range []struct {
		args []string
		out  string
		code int
	}{
		{[]string{"edge-1", "--", "hostname"}, "edge-1\n", 0},
		{[]string{"edge-1", "hostname"}, "edge-1\n", 0},
		{[]string{"client", "--", "sh", "-c", "exit 7"}, "", 7},
		{[]string{"node-1", "--", "echo", "--name", "-x", "a b"}, "--name -x a b\n", 0},
		{[]string{"control", "--", "kubectl", "get", "node", "-o", "name"}, "node/node-1\n", 0},
		{[]string{"edge-9", "--", "true"}, "lab: lab " + name + " has no host \"edge-9\", it has client, router, control, edge-1, node-1\n", 1},
	} {
		out, code := run(t, lab, append([]string{"exec", "--name", name}, tt.args...)...)
		if out != tt.out || code != tt.code {
			t.Errorf("exec %q: got %q and exit code %d, want %q and %d", tt.args, out, code, tt.out, tt.code)
		}
	}
}

func TestImageTable(t *testing.T) {
	got, err := imageTable([]string{"shop=/opt/shop", "a=b=c"})
	if err != nil || got["shop"] != "/opt/shop" || !strings.HasSuffix(got["a"], "/b=c") {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"shop", "=x", "shop=", "registry.example/shop=/opt/shop", "shop:1=/opt/shop"} {
		if _, err := imageTable([]string{bad}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("--image %s: got error %v", bad, err)
		}
	}
}
