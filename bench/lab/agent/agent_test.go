package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"sallyport/bench/lab/network"
)

// TestMain lets the test binary play the lab's program and an image.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == PodInitCommand:
		podInitOnAnotherThread()
	case len(os.Args) > 2 && os.Args[1] == "serve":
		fmt.Fprintln(os.Stderr, serveHostname(os.Args[2]))
		os.Exit(1)
	case len(os.Args) > 1 && os.Args[1] == "launch":
		fmt.Fprintln(os.Stderr, launchSleep())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// podInitOnAnotherThread is the worst case: what Linux keeps per thread must hold for whichever one calls exec.
func podInitOnAnotherThread() {
	runtime.LockOSThread()
	result := make(chan error)
	go func() { result <- PodInit(os.Args[2:]) }()
	fmt.Fprintln(os.Stderr, <-result)
	os.Exit(128)
}

func serveHostname(addr string) error {
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname()
		fmt.Fprint(w, name)
	}))
}

// launchSleep starts a container in the root network namespace, prints its process id, and waits to be killed.
func launchSleep() error {
	script := "setsid sleep 1000 & echo up; exec sleep 1000"
	p, err := newLauncher().start(processSpec{netNS: "/proc/self/ns/net", hostname: "x", argv: []string{"/bin/sh", "-c", script}, output: os.Stdout})
	if err != nil {
		return err
	}
	fmt.Println(p.cmd.Process.Pid)
	<-p.done
	return errors.New("container has ended")
}

// testPod is a pod bound to node-1, with one container that runs a shell script.
func testPod(name, script string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name + "-uid")},
		Spec: corev1.PodSpec{
			NodeName:                      "node-1",
			RestartPolicy:                 corev1.RestartPolicyAlways,
			TerminationGracePeriodSeconds: new(int64(30)),
			Containers:                    []corev1.Container{shell("main", script)},
		},
	}
}

func shell(name, script string) corev1.Container {
	return corev1.Container{Name: name, Image: "registry.example/sh:1", Args: []string{"-c", script}}
}

// bed is an agent with a fake API server and a real network namespace as node-1.
type bed struct {
	*testing.T
	client *fake.Clientset
	config Config
	node   netns.NsHandle
	stop   func() // ends the agent
}

// requireRoot skips a test that makes namespaces, or fails it where the lab is required.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("SALLYPORT_LAB") == "required" {
		t.Fatal("network namespaces need root")
	}
	t.Skip("network namespaces need root")
}

var (
	nodeCIDR  = netip.MustParsePrefix("10.231.7.0/24")
	nodeCIDR6 = netip.MustParsePrefix("fd00:231:7::/64")
)

func startBed(t *testing.T) *bed {
	requireRoot(t)
	prefix := fmt.Sprintf("spagent%d.", os.Getpid())
	b := &bed{T: t, config: Config{
		Node: "node-1", NodeIPs: addrs("127.0.0.1"), NetNS: prefix + "node", PodNetNSPrefix: prefix + "pod.", Dir: t.TempDir(),
		Images: map[string]string{"sh": "/bin/sh", "web": executable(t)},
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	var err error
	if b.node, err = newNamedNetNS(b.config.NetNS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.node.Close()
		if err := netns.DeleteNamed(b.config.NetNS); err != nil {
			t.Error(err)
		}
	})
	if err := inNetNS(b.node, forward); err != nil {
		t.Fatal(err)
	}
	b.client = fake.NewClientset(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1"},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{nodeCIDR.String(), nodeCIDR6.String()}},
	})
	b.start()
	return b
}

// forward makes the node a router, as the lab does.
func forward() error {
	return errors.Join(
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
		os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0),
	)
}

func executable(t *testing.T) string {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs the agent until stop or the end of the test.
func (b *bed) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var agent sync.WaitGroup
	agent.Go(func() {
		if err := run(ctx, b.config, b.client); err != nil {
			b.Errorf("agent: %v", err)
		}
	})
	b.stop = sync.OnceFunc(func() { cancel(); agent.Wait() })
	b.Cleanup(func() {
		b.stop()
		left, err := filepath.Glob(filepath.Join(network.NamespaceFolder, b.config.PodNetNSPrefix+"*"))
		if err != nil || len(left) > 0 {
			b.Errorf("pod namespaces left: %v, %v", left, err)
		}
	})
}

// eventually polls cond until it holds.
func (b *bed) eventually(cond func() error) {
	b.Helper()
	deadline, tick := time.After(10*time.Second), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			b.Fatalf("not within 10 s: %v", err)
		case <-tick.C:
		}
	}
}

func (b *bed) create(pod *corev1.Pod) {
	b.Helper()
	if _, err := b.client.CoreV1().Pods(pod.Namespace).Create(b.Context(), pod, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}

// status waits until the pod's status is as is says, and returns it.
func (b *bed) status(name string, is func(corev1.PodStatus) bool) corev1.PodStatus {
	b.Helper()
	var pod *corev1.Pod
	b.eventually(func() (err error) {
		if pod, err = b.client.CoreV1().Pods("default").Get(b.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !is(pod.Status) {
			return fmt.Errorf("status of pod %s: %+v", name, pod.Status)
		}
		return nil
	})
	return pod.Status
}

func ready(s corev1.PodStatus) bool { return conditionTrue(s.Conditions, corev1.PodReady) }

func inPhase(p corev1.PodPhase) func(corev1.PodStatus) bool {
	return func(s corev1.PodStatus) bool { return s.Phase == p }
}

// delete begins a graceful deletion, as the API server does, and waits for its end.
func (b *bed) delete(name string, grace int64) {
	b.Helper()
	pods := b.client.CoreV1().Pods("default")
	pod, err := pods.Get(b.Context(), name, metav1.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = new(metav1.Now()), &grace
	if _, err := pods.Update(b.Context(), pod, metav1.UpdateOptions{}); err != nil {
		b.Fatal(err)
	}
	b.eventually(func() error {
		if _, err := pods.Get(b.Context(), name, metav1.GetOptions{}); err == nil {
			return errors.New("pod is still there")
		}
		return nil
	})
}

func (b *bed) logFile(name string) string {
	return filepath.Join(b.config.Dir, podsDir, "default_"+name+"_"+name+"-uid", "main.log")
}

// logged waits until the log of the pod's container main contains text.
func (b *bed) logged(name, text string) {
	b.Helper()
	b.eventually(func() error {
		log, err := os.ReadFile(b.logFile(name))
		if err == nil && !strings.Contains(string(log), text) {
			err = fmt.Errorf("log %q lacks %q", log, text)
		}
		return err
	})
}

// dial connects from the node, or from the pod named.
func (b *bed) dial(from string, to string) error {
	ns := b.node
	if from != "" {
		var err error
		if ns, err = netns.GetFromName(podNetNS(b.config.PodNetNSPrefix, types.UID(from+"-uid"))); err != nil {
			return err
		}
		defer ns.Close()
	}
	return inNetNS(ns, func() error {
		conn, err := net.DialTimeout("tcp", to, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// inNode runs a command in the node's network namespace.
func (b *bed) inNode(argv ...string) {
	b.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + filepath.Join(network.NamespaceFolder, b.config.NetNS)}, argv...)...).CombinedOutput()
	if err != nil {
		b.Fatalf("%q: %v: %s", argv, err, out)
	}
}

func (b *bed) hasEvent(reason, text string) {
	b.Helper()
	b.eventually(func() error {
		events, err := b.client.CoreV1().Events("default").List(b.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range events.Items {
			if e.Reason == reason && strings.Contains(e.Message, text) {
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("no Event %s with %q in %q", reason, text, seen)
	})
}

// gone waits until the folder does not exist.
func (b *bed) gone(folder string) {
	b.Helper()
	b.eventually(func() error {
		if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is still there: %v", folder, err)
		}
		return nil
	})
}
