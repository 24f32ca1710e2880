package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// readyWithin bounds how long pods may take to become ready, on a machine that has other things to do.
const readyWithin = 60 * time.Second

// Eventually calls cond until it returns nil, and fails the test with its last error if that takes longer than within.
func Eventually(t testing.TB, within time.Duration, cond func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := poll(ctx, cond); err != nil {
		t.Fatalf("not within %v: %v", within, err)
	}
}

// Namespace makes a namespace for the test, ready to take pods, and returns its name. It is deleted after the test;
// if the test failed, what happened in it is logged first.
func (c *Cluster) Namespace(t testing.TB) string {
	t.Helper()
	ns, err := c.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: namespacePrefix(t.Name())},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("make a namespace: %v", err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			t.Log(c.Diagnose(ctx, ns.Name))
		}
		if err := c.client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace %s: %v", ns.Name, err)
		}
	})
	if err := c.waitServiceAccount(t.Context(), ns.Name); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// namespacePrefix makes the start of a namespace's name (RFC 1123 label, at most 63 characters) of a test's name.
func namespacePrefix(test string) string {
	name := strings.Trim(notInName.ReplaceAllString(strings.ToLower(test), "-"), "-")
	return strings.TrimRight(name[:min(len(name), 40)], "-") + "-"
}

// Apply makes the objects of the YAML documents in manifests exist as written, by server-side apply. Objects without
// a namespace go to the given one.
func (c *Cluster) Apply(t testing.TB, namespace, manifests string) {
	t.Helper()
	if err := c.apply(t.Context(), namespace, manifests); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// Delete deletes the objects of the YAML documents in manifests, and does not wait until they are gone. Those that do
// not exist are no error.
func (c *Cluster) Delete(t testing.TB, namespace, manifests string) {
	t.Helper()
	if err := c.delete(context.WithoutCancel(t.Context()), namespace, manifests); err != nil { // also in a Cleanup
		t.Fatalf("delete: %v", err)
	}
}

// Scale sets the number of a Deployment's replicas, as kubectl scale does, and does not wait.
func (c *Cluster) Scale(t testing.TB, namespace, deployment string, replicas int) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	_, err := c.client.AppsV1().Deployments(namespace).Patch(t.Context(), deployment, types.MergePatchType, patch,
		metav1.PatchOptions{}, "scale")
	if err != nil {
		t.Fatalf("scale deployment %s/%s to %d: %v", namespace, deployment, replicas, err)
	}
}

// WaitReady waits until a Deployment has exactly n pods of its latest template and all are ready.
func (c *Cluster) WaitReady(t testing.TB, namespace, deployment string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyWithin)
	defer cancel()
	err := poll(ctx, func() error {
		d, err := c.client.AppsV1().Deployments(namespace).Get(ctx, deployment, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return readyPods(d, n)
	})
	if err != nil {
		t.Fatalf("wait for %d ready pods: %v\n%s", n, err, c.Diagnose(context.WithoutCancel(ctx), namespace))
	}
}

func readyPods(d *appsv1.Deployment, n int) error {
	s, want := d.Status, int32(n)
	if s.ObservedGeneration >= d.Generation && s.Replicas == want && s.UpdatedReplicas == want && s.ReadyReplicas == want {
		return nil
	}
	return fmt.Errorf("deployment %s/%s: of %d replicas %d are updated, %d ready", d.Namespace, d.Name, s.Replicas, s.UpdatedReplicas, s.ReadyReplicas)
}

// Kubectl runs kubectl as an administrator and returns what it prints; the test fails if kubectl does.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.programs["kubectl"], args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Diagnose tells what an investigator asks first: the pods of a namespace, the end of their logs, its latest events, and
// what the lab's own programs complained of.
func (c *Cluster) Diagnose(ctx context.Context, namespace string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "--- namespace %s of lab %s\n", namespace, c.name)
	c.writePods(ctx, &b, namespace)
	c.writeLogs(&b, namespace)
	c.writeEvents(ctx, &b, namespace)
	for _, name := range c.Programs() {
		if strings.HasPrefix(name, "agent@") {
			fmt.Fprintf(&b, "--- end of the log of %s\n%s\n", name, tail(c.LogFile(name)))
		}
	}
	if err := c.Err(); err != nil {
		fmt.Fprintf(&b, "--- the lab is broken: %v\n", err)
	}
	return b.String()
}

func (c *Cluster) writePods(ctx context.Context, b *strings.Builder, namespace string) {
	pods, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintf(b, "list pods: %v\n", err)
		return
	}
	for _, p := range pods.Items {
		fmt.Fprintf(b, "pod %s on %q: %s, IP %s", p.Name, p.Spec.NodeName, p.Status.Phase, p.Status.PodIP)
		for _, condition := range p.Status.Conditions {
			fmt.Fprintf(b, ", %s %s %s %s", condition.Type, condition.Status, condition.Reason, condition.Message)
		}
		b.WriteByte('\n')
	}
}

// writeLogs writes the end of what the containers of a namespace have printed, by the agents' files.
func (c *Cluster) writeLogs(b *strings.Builder, namespace string) {
	logs, err := filepath.Glob(filepath.Join(agentFolder(c.name, "*"), "pods", namespace+"_*", "*.log"))
	if err != nil {
		fmt.Fprintf(b, "find logs: %v\n", err)
	}
	for _, path := range logs {
		if text := tail(path); text != "" {
			fmt.Fprintf(b, "--- end of the log of %s, container %s\n%s\n", filepath.Base(filepath.Dir(path)), filepath.Base(path), text)
		}
	}
}

// lastEvents is how many events Diagnose shows.
const lastEvents = 20

func (c *Cluster) writeEvents(ctx context.Context, b *strings.Builder, namespace string) {
	events, err := c.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintf(b, "list events: %v\n", err)
		return
	}
	slices.SortStableFunc(events.Items, func(x, y corev1.Event) int {
		return x.CreationTimestamp.Compare(y.CreationTimestamp.Time)
	})
	for _, e := range events.Items[max(0, len(events.Items)-lastEvents):] {
		fmt.Fprintf(b, "event %s %s/%s: %s: %s\n", e.CreationTimestamp.Format(time.TimeOnly), e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
	}
}
