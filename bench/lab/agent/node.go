package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// HeartbeatInterval is how often the agent renews its node's Lease and repairs its Node. The controller manager's
	// --node-monitor-grace-period must be several times as long.
	HeartbeatInterval = 2 * time.Second

	statusInterval  = time.Minute            // between heartbeats in the Node's own status
	podCIDRInterval = 100 * time.Millisecond // between looks for spec.podCIDRs
)

// nodeKeeper registers the Node and keeps it Ready.
type nodeKeeper struct {
	client kubernetes.Interface
	name   string
	ips    []netip.Addr
	log    *slog.Logger
	ready  atomic.Bool           // pods can be run
	cidrs  []string              // the pod CIDRs once the controller manager has given them
	lease  *coordinationv1.Lease // as last written; nil if not known
}

// awaitPodCIDRs registers the Node and returns the pod CIDRs that the controller manager gives it.
func (k *nodeKeeper) awaitPodCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	reported := ""
	for {
		node, err := k.sync(ctx)
		if err == nil && len(node.Spec.PodCIDRs) > 0 {
			k.cidrs = node.Spec.PodCIDRs
			return parsePodCIDRs(node)
		}
		if err != nil && err.Error() != reported {
			reported = err.Error()
			k.log.Warn("register node", "err", err)
		}
		if !sleep(ctx, podCIDRInterval) {
			return nil, fmt.Errorf("wait for spec.podCIDRs of node %s: %w", k.name, ctx.Err())
		}
	}
}

func parsePodCIDRs(node *corev1.Node) ([]netip.Prefix, error) {
	cidrs := make([]netip.Prefix, len(node.Spec.PodCIDRs))
	for i, s := range node.Spec.PodCIDRs {
		var err error
		if cidrs[i], err = netip.ParsePrefix(s); err != nil {
			return nil, fmt.Errorf("node %s: spec.podCIDRs[%d]: %w", node.Name, i, err)
		}
	}
	return cidrs, nil
}

// run sends heartbeats until ctx ends.
func (k *nodeKeeper) run(ctx context.Context) {
	for ok := true; ok; ok = sleep(ctx, HeartbeatInterval) {
		if err := within(ctx, k.beat); err != nil && ctx.Err() == nil {
			k.log.Error("send heartbeat", "node", k.name, "err", err)
		}
	}
}

// beat repairs the Node if need be, and renews its Lease, also if the other fails.
func (k *nodeKeeper) beat(ctx context.Context) error {
	_, err := k.sync(ctx)
	if err != nil {
		err = fmt.Errorf("update node: %w", err)
	}
	return errors.Join(err, k.renewLease(ctx))
}

// sync makes the Node say what is true, also after others changed or deleted it.
func (k *nodeKeeper) sync(ctx context.Context) (*corev1.Node, error) {
	nodes := k.client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, k.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nodes.Create(ctx, k.newNode(), metav1.CreateOptions{})
	}
	if err != nil {
		return nil, err
	}
	status := nodeStatus(k.name, k.ips, k.ready.Load(), metav1.Now())
	if upToDate(&node.Status, &status) {
		return node, nil
	}
	patch, err := nodeStatusPatch(status)
	if err != nil {
		return nil, err
	}
	return nodes.Patch(ctx, k.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
}

// nodeStatusPatch is a strategic merge patch that leaves the conditions of others alone. It replaces the addresses, which would
// be merged by their type, of which a node with two families has the same twice.
func nodeStatusPatch(status corev1.NodeStatus) ([]byte, error) {
	type rest corev1.NodeStatus
	addresses := []any{map[string]string{"$patch": "replace"}}
	for _, a := range status.Addresses {
		addresses = append(addresses, a)
	}
	return json.Marshal(map[string]any{"status": struct {
		rest
		Addresses []any `json:"addresses"`
	}{rest(status), addresses}})
}

// newNode is the Node as registered. A Node that somebody deleted comes back with its pod CIDRs: its pods and the routes
// to them have not changed.
func (k *nodeKeeper) newNode() *corev1.Node {
	spec := corev1.NodeSpec{PodCIDRs: k.cidrs}
	if len(k.cidrs) > 0 {
		spec.PodCIDR = k.cidrs[0]
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: k.name, Labels: map[string]string{
			corev1.LabelHostname:   k.name,
			corev1.LabelOSStable:   runtime.GOOS,
			corev1.LabelArchStable: runtime.GOARCH,
		}},
		Spec:   spec,
		Status: nodeStatus(k.name, k.ips, k.ready.Load(), metav1.Now()),
	}
}

// nodeStatus is the status of a node. Its capacity is generous: the lab's pods ask for what they like, and share what
// the machine has.
func nodeStatus(name string, ips []netip.Addr, ready bool, now metav1.Time) corev1.NodeStatus {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("64"),
		corev1.ResourceMemory:           resource.MustParse("256Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("256Gi"),
		corev1.ResourcePods:             resource.MustParse("250"),
	}
	return corev1.NodeStatus{
		Capacity:        capacity,
		Allocatable:     capacity,
		Conditions:      []corev1.NodeCondition{readiness(ready, now)},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: KubeletPort}},
		Addresses:       nodeAddresses(name, ips),
		NodeInfo: corev1.NodeSystemInfo{
			KubeletVersion: "sallyport-lab", OSImage: "Sallyport lab", OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
			ContainerRuntimeVersion: "lab://processes",
		},
	}
}

func nodeAddresses(name string, ips []netip.Addr) []corev1.NodeAddress {
	var all []corev1.NodeAddress
	for _, ip := range ips {
		all = append(all, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	return append(all, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
}

func readiness(ready bool, now metav1.Time) corev1.NodeCondition {
	c := corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady",
		Message: "waiting for spec.podCIDRs", LastHeartbeatTime: now, LastTransitionTime: now,
	}
	if ready {
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, "KubeletReady", "the node agent runs pods"
	}
	return c
}

// upToDate says whether have needs no patch, and gives want the transition time of have if Ready did not change.
func upToDate(have, want *corev1.NodeStatus) bool {
	ready := &want.Conditions[0]
	i := slices.IndexFunc(have.Conditions, func(c corev1.NodeCondition) bool { return c.Type == ready.Type })
	if i < 0 || have.Conditions[i].Status != ready.Status {
		return false
	}
	ready.LastTransitionTime = have.Conditions[i].LastTransitionTime
	fresh := ready.LastHeartbeatTime.Sub(have.Conditions[i].LastHeartbeatTime.Time) < statusInterval
	return fresh && slices.Equal(have.Addresses, want.Addresses) && have.DaemonEndpoints == want.DaemonEndpoints
}

// renewLease is the heartbeat that the controller manager watches (KEP-589).
func (k *nodeKeeper) renewLease(ctx context.Context) error {
	lease, err := k.writeLease(ctx)
	if err != nil {
		k.lease = nil // the client returns an empty one
		return fmt.Errorf("renew lease: %w", err)
	}
	k.lease = lease
	return nil
}

// writeLease updates the Lease last written, or the one that is there, or makes one.
func (k *nodeKeeper) writeLease(ctx context.Context) (lease *coordinationv1.Lease, err error) {
	leases := k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease = k.lease
	if lease == nil {
		lease, err = leases.Get(ctx, k.name, metav1.GetOptions{})
	}
	if apierrors.IsNotFound(err) {
		return leases.Create(ctx, k.newLease(), metav1.CreateOptions{})
	}
	if err != nil {
		return nil, err
	}
	lease = lease.DeepCopy()
	lease.Spec = k.newLease().Spec
	return leases.Update(ctx, lease, metav1.UpdateOptions{})
}

func (k *nodeKeeper) newLease() *coordinationv1.Lease {
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: k.name, Namespace: corev1.NamespaceNodeLease},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       &k.name,
			LeaseDurationSeconds: new(int32(5 * HeartbeatInterval / time.Second)),
			RenewTime:            &metav1.MicroTime{Time: time.Now()},
		},
	}
}
