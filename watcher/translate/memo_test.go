package translate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
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
	asks    bool            // nodes are asked at all
	o       Options         // the rest
}

func (e *editor) options(m *Memo) Options {
	o := e.o
	o.Memo = m
	o.PodsReachable = func(n model.ObjectRef) bool { return !e.far[n.Name] }
	o.IPv6PodsReachable = func(n model.ObjectRef) bool { return e.far[n.Name] }
	if e.asks {
		o.NodeHealthy = func(n model.ObjectRef, port uint16) bool { return !e.sick[n.Name] || port%2 == 0 }
	}
	return o
}

// configure changes the options, as a new configuration would.
func (e *editor) configure() {
	e.asks = e.IntN(4) > 0
	e.o = Options{
		TLS: e.IntN(2) == 0, RedirectHTTPS: e.IntN(2) == 0, SCTP: e.IntN(2) == 0, IPv6: e.IntN(2) == 0, ClusterIPs: e.IntN(2) == 0, KeepsSource: e.IntN(2) == 0, ProxyProtocol: e.IntN(2) == 0,
		Reach: []model.Reach{"", model.ReachPods, model.ReachNodes}[e.IntN(3)], Zone: []string{"", "a", "b"}[e.IntN(3)],
		ListenPorts:  []ListenPort{{model.TCP, uint16(30000 + e.IntN(5)), "a test"}},
		OwnAddresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(e.IntN(9))})},
		ExternalIPs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, 0}), 29+e.IntN(3))},
	}
}

// edit makes one change.
func (e *editor) edit() {
	node := fmt.Sprint("n", e.IntN(4))
	switch e.IntN(40) {
	case 0:
		e.configure()
	case 1:
		e.asks = !e.asks
	}
	switch e.IntN(14) {
	case 0, 9, 10, 11:
		e.sick[node] = !e.sick[node]
	case 1:
		e.far[node] = !e.far[node]
	case 2:
		replace(e, &e.cluster.Nodes, node, e.node)
	case 12, 13:
		replace(e, &e.cluster.Ingresses, fmt.Sprint("i", e.IntN(4)), e.ingress)
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
	types := []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeExternalName,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer}
	m.CreationTimestamp = metav1.Unix(int64(e.IntN(3)), 0)
	s := &corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{Type: types[e.IntN(len(types))], ClusterIP: fmt.Sprint("10.96.0.", e.IntN(3)+1)}}
	if e.IntN(4) > 0 {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, int32(30900+e.IntN(4))
	}
	s.Spec.ExternalIPs = []string{fmt.Sprint("198.51.100.", e.IntN(4))}
	s.Spec.LoadBalancerSourceRanges = []string{[]string{"10.0.0.0/8", "x"}[e.IntN(2)]}
	s.Spec.IPFamilies = [][]corev1.IPFamily{nil, {corev1.IPv4Protocol}, {corev1.IPv6Protocol, corev1.IPv4Protocol}}[e.IntN(3)]
	if e.IntN(3) == 0 {
		s.Annotations = map[string]string{LoadBalancerIPs: "192.0.2.1", ProxyProtocol: "v1", LimitConnections: "x"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	}
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP, "X"}
	for i := range e.IntN(3) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(80 + e.IntN(2)), NodePort: int32(30000 + e.IntN(5)), Protocol: protocols[e.IntN(len(protocols))]})
	}
	return s
}

func (e *editor) ingress(m metav1.ObjectMeta) *networkingv1.Ingress {
	m.CreationTimestamp = metav1.Unix(int64(e.IntN(3)), 0)
	m.Annotations = map[string]string{SSLRedirect: []string{"true", "false", "x"}[e.IntN(3)]}
	backend := func() networkingv1.IngressBackend {
		port := []networkingv1.ServiceBackendPort{{Name: "p0"}, {Number: 80}, {Number: 81}}[e.IntN(3)]
		return networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: fmt.Sprint("s", e.IntN(6)), Port: port}}
	}
	ing := &networkingv1.Ingress{ObjectMeta: m, Spec: networkingv1.IngressSpec{IngressClassName: new([]string{"sallyport", "other"}[e.IntN(2)])}}
	for range e.IntN(3) {
		paths := []networkingv1.HTTPIngressPath{{Path: fmt.Sprint("/", e.IntN(2)), PathType: new(networkingv1.PathTypePrefix), Backend: backend()}}
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: hostOf(e.IntN(3)),
			IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: paths}}})
	}
	if e.IntN(2) == 0 {
		ing.Spec.DefaultBackend = new(backend())
	}
	if e.IntN(2) == 0 {
		ing.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{hostOf(e.IntN(3)), "-"}}}
	}
	return ing
}

func (e *editor) slice(m metav1.ObjectMeta) *discoveryv1.EndpointSlice {
	m.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", e.IntN(6))}
	s := &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4}
	address := func() string { return fmt.Sprint("10.1.0.", e.IntN(4)) }
	if e.IntN(4) == 0 {
		s.AddressType, address = discoveryv1.AddressTypeIPv6, func() string { return fmt.Sprint("fd00::", e.IntN(4)) }
	}
	for i := range 2 {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(fmt.Sprint("p", i)), Port: new(int32(8080 + e.IntN(2)))})
	}
	for range e.IntN(6) {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{NodeName: new(fmt.Sprint("n", e.IntN(5))), Addresses: []string{address()},
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
		e.cluster.IngressClasses = largeCluster(0)[0].IngressClasses
		e.configure()
		var memo Memo
		var last *model.Snapshot
		lastText := ""
		for i := range 150 {
			for range 1 + e.IntN(2) {
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
	if m := memo.clusters[""]; len(m.order)+len(m.services)+len(m.slices)+len(m.owners)+len(m.ingresses) > 0 {
		t.Errorf("of an empty cluster %d Services, %d slices, %d names and %d Ingresses are held", len(m.services), len(m.slices), len(m.owners), len(m.ingresses))
	}
}

// TestMemoAsksNodes: what a node tells counts at once, though no object has changed.
func TestMemoAsksNodes(t *testing.T) {
	in := largeCluster(1)
	spec := &in[0].Services[0].Spec
	spec.Type, spec.ExternalTrafficPolicy, spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 30900
	only := func(healthy string) func(model.ObjectRef, uint16) bool {
		return func(n model.ObjectRef, _ uint16) bool { return strings.Contains(healthy, n.Name) }
	}
	var memo Memo
	for i, step := range []struct {
		healthy func(model.ObjectRef, uint16) bool
		want    string
	}{{nil, "n0 n1 n2 n3 n4"}, {only("n0"), "n0"}, {only("n1 n2"), "n1 n2"}, {only("n1 n2"), "n1 n2"}, {only(""), "n0 n1 n2 n3 n4"}, {nil, "n0 n1 n2 n3 n4"}} {
		s := Translate(in, Options{Reach: model.ReachNodes, Memo: &memo, NodeHealthy: step.healthy})
		var nodes []string
		for _, d := range s.Services[0].Ports[0].Destinations {
			nodes = append(nodes, d.Node)
		}
		if got := strings.Join(nodes, " "); got != step.want {
			t.Errorf("step %d: sent to %s, want %s", i, got, step.want)
		}
	}
}

// TestMemoOfTLS: the hosts that are redirected may be those of a certificate, which comes and goes while the Ingress stays.
func TestMemoOfTLS(t *testing.T) {
	ing := hostileIngress()
	ing.Spec.DefaultBackend = &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web"}}
	ing.Spec.Rules = []networkingv1.IngressRule{{Host: hostOf(0)}}
	ing.Spec.TLS = []networkingv1.IngressTLS{{SecretName: "cert"}}
	secret := tlsSecret(t, metav1.ObjectMeta{Namespace: ing.Namespace, Name: "cert"}, hostOf(0))
	var memo Memo
	for i, secrets := range [][]*corev1.Secret{nil, {secret}, {secret}, nil} {
		s := translateHostile(objects.Cluster{Ingresses: []*networkingv1.Ingress{ing}, Secrets: secrets}, Options{RedirectHTTPS: true, Memo: &memo})
		if got := s.Routes[len(s.Routes)-1]; got.Host != hostOf(0) || got.RedirectHTTPS != (secrets != nil) {
			t.Errorf("step %d: with %d Secrets %+v", i, len(secrets), got)
		}
	}
}
