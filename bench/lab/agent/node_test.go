package agent

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func nodeReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func newKeeper(t *testing.T) (*nodeKeeper, *fake.Clientset) {
	client := fake.NewClientset()
	return &nodeKeeper{client: client, name: "node-1", ips: addrs("10.0.0.1", "fd00::1"), log: slog.New(slog.NewTextHandler(t.Output(), nil))}, client
}

// TestNodeIsRepaired holds that a beat restores what others change: the controller manager after an outage, a user
// who deletes the Node.
func TestNodeIsRepaired(t *testing.T) {
	k, client := newKeeper(t)
	nodes := client.CoreV1().Nodes()
	beat := func() *corev1.Node {
		t.Helper()
		if err := k.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		node, err := nodes.Get(t.Context(), "node-1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return node
	}
	if nodeReady(beat()) {
		t.Error("node is Ready before it has a pod network")
	}
	k.ready.Store(true)
	node := beat()
	if !nodeReady(node) {
		t.Fatalf("node is not Ready: %+v", node.Status.Conditions)
	}
	if a := node.Status.Addresses; len(a) != 3 || a[0].Address != "10.0.0.1" || a[1].Address != "fd00::1" {
		t.Errorf("addresses %v, want both InternalIPs and the host name", a)
	}
	node.Status.Conditions[0].Status = corev1.ConditionUnknown
	if _, err := nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if !nodeReady(beat()) {
		t.Error("node stays Unknown")
	}
	k.cidrs = []string{"10.1.7.0/24", "fd00:1:7::/64"}
	if err := nodes.Delete(t.Context(), "node-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	node = beat()
	if !nodeReady(node) {
		t.Error("node is not registered again")
	}
	if got := node.Spec; got.PodCIDR != "10.1.7.0/24" || !slices.Equal(got.PodCIDRs, k.cidrs) {
		t.Errorf("the pods are still in %v, but the node says %+v", k.cidrs, got)
	}
}

func TestNodeIsPatchedOnlyOnChange(t *testing.T) {
	k, client := newKeeper(t)
	k.ready.Store(true)
	for range 3 {
		if _, err := k.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range client.Actions() {
		if a.GetVerb() == "patch" {
			t.Errorf("node that has not changed is patched: %v", a)
		}
	}
}

// TestLeaseAfterFailure holds that a failed renewal is followed by one that works.
func TestLeaseAfterFailure(t *testing.T) {
	k, client := newKeeper(t)
	fail := false
	client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		return fail, nil, errors.New("server is away")
	})
	for i, want := range []bool{true, true, false, true, true} { // made, renewed, failed, found, renewed
		fail = !want
		if err := k.renewLease(t.Context()); (err == nil) != want {
			t.Fatalf("renewal %d: %v", i+1, err)
		}
	}
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), "node-1", metav1.GetOptions{})
	if err != nil || time.Since(lease.Spec.RenewTime.Time) > time.Minute || *lease.Spec.HolderIdentity != "node-1" {
		t.Errorf("lease %+v, %v", lease, err)
	}
}

func TestParsePodCIDRs(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.0.0/24", "nonsense"}}}
	_, err := parsePodCIDRs(node)
	if want := `node node-1: spec.podCIDRs[1]: netip.ParsePrefix("nonsense"): no '/'`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
