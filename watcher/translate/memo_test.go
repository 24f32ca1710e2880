package translate

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// An editor makes random changes to a small cluster, as an API server's clients do: an object that changes is another object.
type editor struct {
	*rand.Rand
	cluster objects.Cluster
	sick    map[string]bool // nodes that say that they have no endpoints
	far     map[string]bool // nodes whose pods are not reached
}

func (e *editor) options(m *Memo) Options {
	return Options{
		SCTP: true, IPv6: true, Zone: "a", ClusterIPs: true, Memo: m,
		PodsReachable:     func(n model.ObjectRef) bool { return !e.far[n.Name] },
		IPv6PodsReachable: func(n model.ObjectRef) bool { return e.far[n.Name] },
		NodeHealthy:       func(n model.ObjectRef, port uint16) bool { return !e.sick[n.Name] || port%2 == 0 },
		ListenPorts:       []ListenPort{{model.TCP, 30003, "a test"}},
	}
}

// edit makes one change.
func (e *editor) edit() {
	node := fmt.Sprint("n", e.IntN(4))
	switch e.IntN(9) {
	case 0:
		e.sick[node] = !e.sick[node]
	case 1:
		e.far[node] = !e.far[node]
	case 2:
		replace(e, &e.cluster.Nodes, node, e.node)
	case 3, 4, 5:
		replace(e, &e.cluster.Services, fmt.Sprint("s", e.IntN(6)), e.service)
	default:
		replace(e, &e.cluster.EndpointSlices, fmt.Sprint("x", e.IntN(10)), e.slice)
	}
	shuffle(e.Rand, &e.cluster)
}

// replace puts a new object in the place of the one of that name, or takes it away.
func replace[T metav1.Object](e *editor, list *[]T, name string, make func(metav1.ObjectMeta) T) {
	before := len(*list)
	*list = slices.DeleteFunc(slices.Clone(*list), func(o T) bool { return o.GetName() == name })
	if len(*list) == before || e.IntN(3) > 0 {
		*list = append(*list, make(metav1.ObjectMeta{Namespace: "shop", Name: name}))
	}
}

func (e *editor) node(m metav1.ObjectMeta) *corev1.Node {
	m.Namespace = ""
	ready := corev1.ConditionTrue
	if e.IntN(3) == 0 {
		ready = corev1.ConditionFalse
	}
	return &corev1.Node{ObjectMeta: m, Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0." + m.Name[1:]}, {Type: corev1.NodeInternalIP, Address: "fd00::1" + m.Name[1:]}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
}

func (e *editor) service(m metav1.ObjectMeta) *corev1.Service {
	types := []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName}
	m.CreationTimestamp = metav1.Unix(int64(e.IntN(3)), 0)
	s := &corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{Type: types[e.IntN(len(types))], ClusterIP: fmt.Sprint("10.96.0.", e.IntN(3)+1)}}
	if e.IntN(2) == 0 {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, int32(30900+e.IntN(4))
	}
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP, "X"}
	for i := range e.IntN(3) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(80 + e.IntN(2)), NodePort: int32(30000 + e.IntN(5)), Protocol: protocols[e.IntN(4)]})
	}
	return s
}

func (e *editor) slice(m metav1.ObjectMeta) *discoveryv1.EndpointSlice {
	m.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", e.IntN(6))}
	s := &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4}
	for i := range 2 {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(fmt.Sprint("p", i)), Port: new(int32(8080 + e.IntN(2)))})
	}
	for range e.IntN(4) {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{NodeName: new(fmt.Sprint("n", e.IntN(5))), Addresses: []string{fmt.Sprint("10.1.0.", e.IntN(4))},
			Conditions: discoveryv1.EndpointConditions{Ready: new(e.IntN(2) == 0), Terminating: new(e.IntN(2) == 0)},
			Hints:      &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: []string{"a", "b"}[e.IntN(2)]}}}})
	}
	return s
}

// TestMemoChangesNothing: after any change a translation with memory is the same as one without, and snapshots that were made
// before stay as they were.
func TestMemoChangesNothing(t *testing.T) {
	for seed := range uint64(20) {
		e := &editor{Rand: rand.New(rand.NewPCG(seed, 1)), sick: map[string]bool{}, far: map[string]bool{}}
		var memo Memo
		var last *model.Snapshot
		lastText := ""
		for i := range 150 {
			for range 1 + e.IntN(3) {
				e.edit()
			}
			in := objects.Objects{e.cluster}
			got, want := Translate(in, e.options(&memo)), Translate(in, e.options(nil))
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, change %d: with memory\n%s\nwithout\n%s", seed, i, text(t, got), text(t, want))
			}
			if last != nil && text(t, last) != lastText {
				t.Fatalf("seed %d, change %d: the snapshot before has become\n%s\nit was\n%s", seed, i, text(t, last), lastText)
			}
			last, lastText = got, text(t, got)
		}
	}
}

// TestMemoForgets: what is gone is not held.
func TestMemoForgets(t *testing.T) {
	var memo Memo
	for _, in := range []objects.Objects{largeCluster(100), largeCluster(100), largeCluster(0)} {
		Translate(in, Options{Memo: &memo})
	}
	if m := memo.clusters[""]; len(m.order)+len(m.services)+len(m.slices)+len(m.owners) > 0 {
		t.Errorf("of an empty cluster %d Services, %d slices and %d names are held", len(m.services), len(m.slices), len(m.owners))
	}
}
