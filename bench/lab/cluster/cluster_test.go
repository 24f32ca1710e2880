package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"sallyport/bench/lab/network"
)

var lab = Shared{Options: Options{Nodes: 2, Edges: 2}}

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// hostnames is a Deployment of pods that answer with their name, behind a NodePort.
const hostnames = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hostnames}
spec:
  replicas: %d
  selector: {matchLabels: {app: hostnames}}
  template:
    metadata: {labels: {app: hostnames}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: hostnames
        image: registry.k8s.io/e2e-test-images/agnhost:2.59
        args: [serve-hostname]
        readinessProbe: {httpGet: {path: /, port: 9376}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: hostnames}
spec:
  type: NodePort
  selector: {app: hostnames}
  ports: [{port: 80, targetPort: 9376}]
`

// get requests / from host at the address. It gives up after a second: packets to a pod that has just gone are lost until
// kube-proxy has followed.
func get(host *Host, addr netip.Addr, port int32) (string, error) {
	client := host.HTTPClient()
	client.Timeout = time.Second
	response, err := client.Get("http://" + netip.AddrPortFrom(addr, uint16(port)).String())
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", response.Status)
	}
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), err
}

// reaches tells whether host can connect to the address. What cannot be routed is often silent, so it waits little.
func reaches(t *testing.T, host *Host, addr netip.Addr, port int32) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
	defer cancel()
	conn, err := host.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, uint16(port)).String())
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// answering returns nil when n pods, no more and no less, answer 40 requests from host at the address.
func answering(host *Host, addr netip.Addr, port int32, n int) error {
	pods := map[string]bool{}
	for range 40 {
		pod, err := get(host, addr, port)
		if err != nil {
			return err
		}
		pods[pod] = true
	}
	if len(pods) != n {
		return fmt.Errorf("%v:%d is answered by %d pods, want %d: %v", addr, port, len(pods), n, pods)
	}
	return nil
}

func nodePort(t *testing.T, c *Cluster, ns, service string) int32 {
	t.Helper()
	s, err := c.Client().CoreV1().Services(ns).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Spec.Ports[0].NodePort
}

func TestNodePortAnswersFromAnEdge(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	c.Apply(t, ns, fmt.Sprintf(hostnames, 3))
	c.WaitReady(t, ns, "hostnames", 3)
	port := nodePort(t, c, ns, "hostnames")
	for _, node := range []string{"node-1", "node-2"} {
		Eventually(t, 10*time.Second, func() error {
			return answering(c.Host("edge-1"), c.Host(node).Addr, port, 3)
		})
	}
	if reaches(t, c.Host("client"), c.Host("node-1").Addr, port) {
		t.Error("the client reaches a node, which is outside its network")
	}
	for _, n := range []int{5, 1} {
		c.Scale(t, ns, "hostnames", n)
		Eventually(t, 10*time.Second, func() error {
			return answering(c.Host("edge-2"), c.Host("node-1").Addr, port, n)
		})
		c.WaitReady(t, ns, "hostnames", n)
	}
}

func TestNodesRouteToEachOthersPods(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	c.Apply(t, ns, fmt.Sprintf(hostnames, 4))
	c.WaitReady(t, ns, "hostnames", 4)
	pods, err := c.Client().CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		ip := netip.MustParseAddr(pod.Status.PodIP)
		for _, from := range []string{"node-1", "node-2", "control"} {
			if got, err := get(c.Host(from), ip, 9376); got != pod.Name {
				t.Errorf("from %s to %s on %s at %v: got %q, %v", from, pod.Name, pod.Spec.NodeName, ip, got, err)
			}
		}
		if reaches(t, c.Host("edge-1"), ip, 9376) {
			t.Errorf("edge-1 reaches pod %s without a route of its own", pod.Name)
		}
	}
}

func TestKubeconfigWorksEverywhereAndForBothUsers(t *testing.T) {
	c := lab.Cluster(t)
	if got := c.Kubectl(t, "get", "nodes", "-o", "name"); got != "node/node-1\nnode/node-2\n" {
		t.Errorf("kubectl in the root namespace: got %q", got)
	}
	for _, h := range c.Hosts() {
		out, err := h.Command(t.Context(), "kubectl", "get", "nodes", "-o", "name").CombinedOutput()
		if err != nil || string(out) != "node/node-1\nnode/node-2\n" {
			t.Errorf("kubectl on %s: got %q, %v", h.Name, out, err)
		}
	}
	for _, name := range []string{ContextCertificate, ContextToken} {
		config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig()},
			&clientcmd.ConfigOverrides{CurrentContext: name}).ClientConfig()
		if err != nil {
			t.Fatal(err)
		}
		version, err := kubernetes.NewForConfigOrDie(config).Discovery().ServerVersion()
		if err != nil || version.GitVersion != "v1.36.3" {
			t.Errorf("context %s: server version %v, %v", name, version, err)
		}
	}
}

// A credential that expires is refused from then on, on connections that are open too.
func TestKubeconfigOfAUserExpires(t *testing.T) {
	c := lab.Cluster(t)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.WriteKubeconfig(path, "joe", 3*time.Second, "system:masters"); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	nodes := kubernetes.NewForConfigOrDie(config).CoreV1().Nodes()
	if _, err := nodes.List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("before: %v", err)
	}
	Eventually(t, 10*time.Second, func() error {
		if _, err := nodes.List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("got %v, want 401", err)
		}
		return nil
	})
}

// readiness returns a condition: the node is Ready, or is not.
func readiness(t *testing.T, c *Cluster, name string, want bool) func() error {
	return func() error {
		node, err := c.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && nodeReady(node) != want {
			err = fmt.Errorf("%s is Ready %v, want %v", name, !want, want)
		}
		return err
	}
}

// A node without power answers nothing, its pods are given up, and its return makes all as before.
func TestNodeOutage(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	c.Apply(t, ns, fmt.Sprintf(hostnames, 4))
	c.WaitReady(t, ns, "hostnames", 4)
	port, edge := nodePort(t, c, ns, "hostnames"), c.Host("edge-1")
	if err := c.StopNode("node-2"); err != nil {
		t.Fatal(err)
	}
	if reaches(t, edge, c.Host("node-2").Addr, port) {
		t.Error("a node without power answers")
	}
	Eventually(t, 3*nodeMonitorGrace, readiness(t, c, "node-2", false))
	Eventually(t, 10*time.Second, func() error { return answering(edge, c.Host("node-1").Addr, port, podsOn(t, c, ns, "node-1")) })
	if err := c.StartNode(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	c.WaitReady(t, ns, "hostnames", 4)
	Eventually(t, 10*time.Second, func() error { return answering(edge, c.Host("node-2").Addr, port, 4) })
	if err := c.Err(); err != nil {
		t.Errorf("a stop that was asked for counts as failure: %v", err)
	}
	if err := c.StopNode("edge-1"); err == nil {
		t.Error("an edge was stopped as a node")
	}
}

// podsOn counts the pods of a namespace on a node.
func podsOn(t *testing.T, c *Cluster, ns, node string) int {
	t.Helper()
	pods, err := c.Client().CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		t.Fatal(err)
	}
	return len(pods.Items)
}

// The agent talks to the API server over its node's cable.
func TestNodeWhoseCableIsCut(t *testing.T) {
	c := lab.Cluster(t)
	node := c.Host("node-2")
	if err := node.CutCable(network.NodesLink, network.Silent); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 3*nodeMonitorGrace, readiness(t, c, "node-2", false))
	if err := node.MendCable(network.NodesLink); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 30*time.Second, readiness(t, c, "node-2", true))
}

func TestAPIServerOutage(t *testing.T) {
	c := lab.Cluster(t)
	if err := c.StopProgram("kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("a stopped API server answers")
	}
	if err := c.StartProgram("kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 30*time.Second, func() error { return c.WaitAPI(t.Context()) })
}

func TestApplyRefuses(t *testing.T) {
	c := lab.Cluster(t)
	for _, tt := range []struct{ name, manifest, want string }{
		{"unknown kind", "apiVersion: v1\nkind: Nothing\nmetadata: {name: a}\n", "no matches for kind"},
		{"invalid object", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 0}]}\n", "Service a"},
		{"not YAML", "a: [", "decode manifest 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := c.apply(t.Context(), metav1.NamespaceDefault, tt.manifest)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestDiagnoseNamesThePodAndItsReason(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	c.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec:
  terminationGracePeriodSeconds: 0
  initContainers: [{name: first, image: agnhost, command: [echo, my last words]}]
  containers: [{name: a, image: example.com/unknown:1}]
`)
	Eventually(t, 10*time.Second, func() error {
		if got := c.Diagnose(t.Context(), ns); !strings.Contains(got, "pod stranger on") || !strings.Contains(got, "my last words") || !strings.Contains(got, `image "example.com/unknown:1"`) {
			return fmt.Errorf("the pod or the reason is missing in:\n%s", got)
		}
		return nil
	})
	pod, err := c.Client().CoreV1().Pods(ns).Get(t.Context(), "stranger", metav1.GetOptions{})
	if err != nil || pod.Status.Phase != corev1.PodPending {
		t.Errorf("pod is %v, %v, want Pending", pod.Status.Phase, err)
	}
}

// The Gateway API's echo server tells which pod answers by an environment of fieldRefs.
func TestEchoBasicKnowsItsPod(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	c.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: echo}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: gcr.io/k8s-staging-gateway-api/echo-basic:v20240412-v1.0.0-394-g40c666fd
    env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
`)
	Eventually(t, 20*time.Second, func() error {
		pod, err := c.Client().CoreV1().Pods(ns).Get(t.Context(), "echo", metav1.GetOptions{})
		if err != nil {
			return err
		}
		ip, err := netip.ParseAddr(pod.Status.PodIP)
		if err != nil {
			return err
		}
		got, err := get(c.Host("node-1"), ip, 3000)
		if err == nil && (!strings.Contains(got, `"pod": "echo"`) || !strings.Contains(got, `"namespace": "`+ns+`"`)) {
			err = fmt.Errorf("the echo does not tell its pod and namespace: %s", got)
		}
		return err
	})
}

func TestStartThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	RequireLab(t)
	name := fmt.Sprintf("test-fails-%d", os.Getpid())
	c, err := Start(t.Context(), Options{Name: name, Nodes: 1, Program: "/bin/false"})
	if err == nil {
		t.Fatal("a cluster without agents started:", c.Stop())
	}
	if want := "agent@node-1 ended by itself"; !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one with %q", err, want)
	}
	namespaces, err := network.Namespaces(name)
	if err != nil || len(namespaces) > 0 {
		t.Errorf("namespaces left: %v, %v", namespaces, err)
	}
	if pids, err := processes(name); err != nil || len(pids) > 0 {
		t.Errorf("processes left: %v, %v", pids, err)
	}
	if _, err := os.Stat(folder(name)); !os.IsNotExist(err) {
		t.Errorf("folder left: %v", err)
	}
}
