package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sallyport/bench/lab/network"
)

func webPod(name string) *corev1.Pod {
	pod := testPod(name, "")
	pod.Spec.Containers[0] = corev1.Container{
		Name: "main", Image: "web", Args: []string{"serve", ":8080"}, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		ReadinessProbe: &corev1.Probe{PeriodSeconds: 10, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("http")},
		}},
	}
	return pod
}

func TestNode(t *testing.T) {
	b := startBed(t)
	b.eventually(func() error {
		node, err := b.client.CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !nodeReady(node) {
			return errors.New("node is not Ready")
		}
		_, err = b.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), "node-1", metav1.GetOptions{})
		return err
	})
}

func TestPodServes(t *testing.T) {
	b := startBed(t)
	b.create(webPod("one"))
	b.create(webPod("two"))
	one, two := b.status("one", ready), b.status("two", ready)
	if one.PodIP == two.PodIP || !nodeCIDR.Contains(addr(one.PodIP)) || !nodeCIDR6.Contains(addr(one.PodIPs[1].IP)) || one.HostIP != "127.0.0.1" {
		t.Errorf("pod addresses %v and %v, host %s", one.PodIPs, two.PodIPs, one.HostIP)
	}
	for _, ip := range one.PodIPs {
		to := "[" + ip.IP + "]:8080"
		if addr(ip.IP).Is4() {
			to = ip.IP + ":8080"
		}
		for _, from := range []string{"", "one", "two"} {
			if err := b.dial(from, to); err != nil {
				t.Errorf("from %q to %s: %v", from, to, err)
			}
		}
	}
	b.delete("one", 30)
	if err := b.dial("", one.PodIP+":8080"); err == nil {
		t.Error("a deleted pod answers")
	}
	if _, err := os.Stat(b.logFile("one")); err == nil {
		t.Error("logs of a deleted pod are still there")
	}
	b.stop()
	if err := b.dial("", two.PodIP+":8080"); err == nil {
		t.Error("a pod outlives its agent")
	}
}

// TestServiceOnOneNode plays kube-proxy: every pod reaches every pod of its node, itself too, at an address that the
// node translates.
func TestServiceOnOneNode(t *testing.T) {
	b := startBed(t)
	const vip = "10.231.8.1"
	b.create(webPod("one"))
	b.create(webPod("two"))
	for _, name := range []string{"one", "two"} {
		to := b.status(name, ready).PodIP + ":8080"
		b.inNode("iptables-legacy", "-w", "-t", "nat", "-F")
		b.inNode("iptables-legacy", "-w", "-t", "nat", "-A", "PREROUTING", "-d", vip, "-p", "tcp", "-j", "DNAT", "--to-destination", to)
		b.inNode("iptables-legacy", "-w", "-t", "nat", "-A", "POSTROUTING", "-o", bridgeName, "-j", "MASQUERADE")
		for _, from := range []string{"one", "two"} {
			if err := b.dial(from, vip+":80"); err != nil {
				t.Errorf("from %s to %s by NAT: %v", from, name, err)
			}
		}
	}
}

// TestContainerSurroundings has the container itself say what it sees.
func TestContainerSurroundings(t *testing.T) {
	b := startBed(t)
	pod := testPod("seer", `set -- /proc/[0-9]*; echo "procs=$# pid=$$$$ dir=$(readlink /proc/1/cwd) node=$NODE host=$(hostname)"; exec sleep 1000`)
	pod.Spec.Containers[0].WorkingDir = "/usr"
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "NODE", ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"},
	}}}
	b.create(pod)
	b.status("seer", ready)
	b.logged("seer", "procs=1 pid=1 dir=/usr node=node-1 host=seer\n")
}

func TestContainerStartsInTheRootFolder(t *testing.T) {
	b := startBed(t)
	b.create(testPod("seer", `echo "dir=$(readlink /proc/1/cwd)"; exec sleep 1000`))
	b.logged("seer", "dir=/\n")
}

func TestHostNetwork(t *testing.T) {
	b := startBed(t)
	pod := testPod("agent", "hostname; ls /sys/class/net >/dev/null; grep -c pods: /proc/net/dev; exec sleep 1000")
	pod.Spec.HostNetwork = true
	b.create(pod)
	if s := b.status("agent", ready); s.PodIP != "127.0.0.1" {
		t.Errorf("pod IP %s, want the node's", s.PodIP)
	}
	b.logged("agent", "node-1\n1\n")
	b.delete("agent", 0)
}

func TestInitContainers(t *testing.T) {
	b := startBed(t)
	pod := testPod("web", "exec sleep 1000")
	first := shell("first", `[ -e "$HOME/tried" ] || { touch "$HOME/tried"; exit 1; }; touch "$HOME/first"`)
	second := shell("second", `[ -e "$HOME/first" ]`)
	home := []corev1.EnvVar{{Name: "HOME", Value: t.TempDir()}}
	first.Env, second.Env = home, home
	pod.Spec.InitContainers = []corev1.Container{first, second}
	b.create(pod)
	s := b.status("web", ready)
	if got := s.InitContainerStatuses; got[0].RestartCount != 1 || got[1].RestartCount != 0 {
		t.Errorf("init containers %+v: want the first run twice, the second once", got)
	}
}

func TestGracefulTermination(t *testing.T) {
	b := startBed(t)
	mark := t.TempDir() + "/order"
	pod := testPod("web", `trap 'echo term >>`+mark+`; exit 0' TERM; echo up; while :; do sleep 0.02; done`)
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
		Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "echo stop >>" + mark}},
	}}
	b.create(pod)
	b.logged("web", "up")
	b.delete("web", 30)
	if order, err := os.ReadFile(mark); string(order) != "stop\nterm\n" {
		t.Errorf("order %q, %v", order, err)
	}
}

// TestPreStopSleep holds the order and the time: a pod that would end at once must live as long as preStop.
func TestPreStopSleep(t *testing.T) {
	b := startBed(t)
	pod := webPod("web")
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}}
	b.create(pod)
	b.status("web", ready)
	began := time.Now()
	b.delete("web", 30)
	if took := time.Since(began); took < time.Second || took > 5*time.Second {
		t.Errorf("deletion took %v, want a little more than 1s", took)
	}
}

// TestKilledAfterGrace has a process that ignores SIGTERM, and a child that has left its session.
func TestKilledAfterGrace(t *testing.T) {
	b := startBed(t)
	b.create(testPod("deaf", `trap "" TERM; setsid sleep 1000 & echo up; while :; do sleep 0.1; done`))
	s := b.status("deaf", ready)
	b.logged("deaf", "up")
	b.delete("deaf", 1)
	if err := b.dial("", s.PodIP+":80"); err == nil {
		t.Error("something answers at the address of a killed pod")
	}
}

func TestCrashLoop(t *testing.T) {
	b := startBed(t)
	b.create(testPod("crash", "exit 3"))
	s := b.status("crash", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].RestartCount >= 2 && s.ContainerStatuses[0].State.Waiting != nil
	})
	c := s.ContainerStatuses[0]
	if c.State.Waiting.Reason != "CrashLoopBackOff" || c.LastTerminationState.Terminated.ExitCode != 3 || s.Phase != corev1.PodRunning || ready(s) {
		t.Errorf("status %+v", s)
	}
	b.delete("crash", 30)
}

func TestRunToCompletion(t *testing.T) {
	b := startBed(t)
	job := func(name, script string, policy corev1.RestartPolicy, want corev1.PodPhase, restarts int32) {
		pod := testPod(name, script)
		pod.Spec.RestartPolicy = policy
		b.create(pod)
		s := b.status(name, inPhase(want))
		if got := s.ContainerStatuses[0].RestartCount; got != restarts {
			t.Errorf("%s: restarted %d times, want %d", name, got, restarts)
		}
		if _, err := os.Stat(b.logFile(name)); err != nil {
			t.Errorf("%s: logs of an ended pod: %v", name, err)
		}
		b.delete(name, 30)
	}
	job("done", "exit 0", corev1.RestartPolicyNever, corev1.PodSucceeded, 0)
	job("broken", "exit 3", corev1.RestartPolicyNever, corev1.PodFailed, 0)
	again := t.TempDir() + "/again"
	job("retried", "[ -e "+again+" ] && exit 0; touch "+again+"; exit 1", corev1.RestartPolicyOnFailure, corev1.PodSucceeded, 1)
}

func TestCannotRun(t *testing.T) {
	b := startBed(t)
	for _, tt := range []struct {
		name, reason, message string
		change                func(*corev1.Container)
	}{
		{"image", "ErrImagePull", `image "nginx:1" is not in the lab's image table, which knows sh, web`, func(c *corev1.Container) { c.Image = "nginx:1" }},
		{"command", "RunContainerError", `command "/no/such"`, func(c *corev1.Container) { c.Command = []string{"/no/such"} }},
		{"volume", "CreateContainerConfigError", `volume "data": it is not in spec.volumes`, func(c *corev1.Container) {
			c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		}},
		{"folder", "CreateContainerError", `workingDir: stat /no/such/.`, func(c *corev1.Container) { c.WorkingDir = "/no/such" }},
		{"host-port", "CreateContainerConfigError", `hostPort 80 is not supported`, func(c *corev1.Container) {
			c.Ports = []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 80}}
		}},
	} {
		pod := testPod(tt.name, "exec sleep 1000")
		tt.change(&pod.Spec.Containers[0])
		b.create(pod)
		b.status(tt.name, func(s corev1.PodStatus) bool {
			if len(s.ContainerStatuses) == 0 || s.ContainerStatuses[0].State.Waiting == nil {
				return false
			}
			w := s.ContainerStatuses[0].State.Waiting
			return s.Phase == corev1.PodPending && w.Reason == tt.reason && strings.Contains(w.Message, tt.message)
		})
		b.hasEvent("Failed", tt.message)
		b.delete(tt.name, 30)
	}
}

func TestLiveness(t *testing.T) {
	b := startBed(t)
	pod := webPod("web")
	pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{
		PeriodSeconds: 1, FailureThreshold: 2, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(81)}},
	}
	b.create(pod)
	b.status("web", func(s corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount > 0 })
	b.hasEvent("Killing", "liveness probe failed")
}

func TestReadinessFollows(t *testing.T) {
	b := startBed(t)
	flag := t.TempDir() + "/ready"
	pod := testPod("web", "exec sleep 1000")
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", flag}}},
	}
	b.create(pod)
	b.status("web", inPhase(corev1.PodRunning))
	b.hasEvent("Unhealthy", "Readiness probe failed")
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.status("web", ready)
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	b.status("web", func(s corev1.PodStatus) bool { return !ready(s) })
}

// TestRemoveOrphans makes what an agent that was killed may leave.
func TestRemoveOrphans(t *testing.T) {
	b := startBed(t)
	b.stop()
	name := podNetNS(b.config.PodNetNSPrefix, "lost-uid")
	ns, err := newNamedNetNS(name)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	logs := b.logFile("lost")
	if err := os.MkdirAll(filepath.Dir(logs), 0o755); err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(logs)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	l := newLauncher()
	defer l.stop()
	argv := []string{"/bin/sh", "-c", "echo inside; exec sleep 1000"}
	p, err := l.start(processSpec{netNS: filepath.Join(network.NamespaceFolder, name), hostname: "lost", argv: argv, output: output})
	if err != nil {
		t.Fatal(err)
	}
	b.logged("lost", "inside")
	if err := removeOrphans(b.config.Dir, b.config.PodNetNSPrefix); err != nil {
		t.Error(err)
	}
	<-p.done
	if _, err := os.Stat(logs); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("logs of an orphan: %v", err)
	}
}
