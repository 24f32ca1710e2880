package cluster

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
)

// shell makes a program of a shell script, and a channel that takes its failures.
func shell(t *testing.T, script string) (*program, chan string) {
	t.Helper()
	failures := make(chan string, 1)
	p := &program{
		name: "shell",
		log:  filepath.Join(t.TempDir(), "log", "shell.log"),
		command: func(ctx context.Context) *exec.Cmd {
			cmd := exec.CommandContext(ctx, "sh", "-c", script)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			return cmd
		},
		failed: func(_, tail string, err error) { failures <- tail + ": " + err.Error() },
	}
	return p, failures
}

func TestProgramThatEndsByItselfIsAFailure(t *testing.T) {
	p, failures := shell(t, "echo my last words; exit 3")
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	if got, want := <-failures, "my last words: exit status 3"; got != want {
		t.Errorf("got failure %q, want %q", got, want)
	}
}

func TestProgramStopsAndStartsAgain(t *testing.T) {
	p, failures := shell(t, "echo run; exec sleep 1000")
	for range 2 {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Errorf("start of a running program: %v", err)
		}
		Eventually(t, stopWithin, func() error {
			if !strings.HasSuffix(tail(p.log), "run") {
				return errors.New("the program says nothing")
			}
			return nil
		})
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.stop(); err != nil {
		t.Errorf("stop of a stopped program: %v", err)
	}
	select {
	case failure := <-failures:
		t.Errorf("a stop that was asked for counts as failure: %s", failure)
	default:
	}
}

func TestClaim(t *testing.T) {
	const name = "claim-test"
	first, err := claimLab(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claimLab(name); !errors.Is(err, errUp) {
		t.Errorf("second claim: got error %v, want %v", err, errUp)
	}
	if pid, err := owner(name); pid != syscall.Getpid() || err != nil {
		t.Errorf("owner is %d, %v, want this process", pid, err)
	}
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	if pid, err := owner(name); pid != 0 || err != nil {
		t.Errorf("owner after release is %d, %v, want none", pid, err)
	}
}

func TestNamespacePrefix(t *testing.T) {
	for _, tt := range []struct{ test, want string }{
		{"TestIngress", "testingress-"},
		{"TestIngress/two_hosts,_ÄÖ", "testingress-two-hosts-"},
		{"Test" + strings.Repeat("Long", 30), "test" + strings.Repeat("long", 9) + "-"},
	} {
		if got := namespacePrefix(tt.test); got != tt.want {
			t.Errorf("namespacePrefix(%q) = %q, want %q", tt.test, got, tt.want)
		}
	}
}

func TestReadyPods(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status appsv1.DeploymentStatus
		ok     bool
	}{
		{"all ready", appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 3, ReadyReplicas: 3}, true},
		{"status of an older spec", appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 3, UpdatedReplicas: 3, ReadyReplicas: 3}, false},
		{"an old pod is still there", appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 4, UpdatedReplicas: 3, ReadyReplicas: 4}, false},
		{"one is not ready", appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 3, ReadyReplicas: 2}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &appsv1.Deployment{Status: tt.status}
			d.Generation = 2
			if err := readyPods(d, 3); (err == nil) != tt.ok {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestCheckImages(t *testing.T) {
	for _, tt := range []struct {
		path string
		ok   bool
	}{
		{"/bin/sh", true},
		{"/nowhere/shop", false},
		{"/etc/passwd", false},
		{"/", false},
		{"program_test.go", false},
	} {
		if err := checkImages(map[string]string{"shop": tt.path}); (err == nil) != tt.ok {
			t.Errorf("%s: got %v, want ok %v", tt.path, err, tt.ok)
		}
	}
}

// Another lab's end may remove the folder of all labs at any time.
func TestMakeFolderBesideAnEndingLab(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "labs")
	ctx, cancel := context.WithCancel(t.Context())
	var ending sync.WaitGroup
	ending.Go(func() {
		for ctx.Err() == nil {
			_ = os.Remove(parent) // fails as long as a lab is in it
		}
	})
	defer ending.Wait()
	defer cancel()
	for range 200 {
		dir := filepath.Join(parent, "lab")
		if err := makeFolder(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
}
