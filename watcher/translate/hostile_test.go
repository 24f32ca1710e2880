package translate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// Objects of a tenant, as large as an API server takes them (some 1.5 MB).

var hostile = metav1.ObjectMeta{Namespace: "hostile", Name: "web"}

func hostileIngress() *networkingv1.Ingress {
	return &networkingv1.Ingress{ObjectMeta: *hostile.DeepCopy(), Spec: networkingv1.IngressSpec{IngressClassName: new("sallyport")}}
}

// hostOf is the i-th of many hosts.
func hostOf(i int) string { return fmt.Sprintf("h%d.example.com", i) }

// manyPorts is a Service with n ports, each of which a path of the Ingress leads to, by name and by number.
func manyPorts(n int) objects.Cluster {
	svc := &corev1.Service{ObjectMeta: hostile}
	ing := hostileIngress()
	for i := range n {
		port := corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(i + 1)}
		svc.Spec.Ports = append(svc.Spec.Ports, port)
		path := func(path string, to networkingv1.ServiceBackendPort) networkingv1.HTTPIngressPath {
			return networkingv1.HTTPIngressPath{Path: path, PathType: new(networkingv1.PathTypePrefix), Backend: networkingv1.IngressBackend{
				Service: &networkingv1.IngressServiceBackend{Name: svc.Name, Port: to}}}
		}
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: hostOf(i), IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{path("/name", networkingv1.ServiceBackendPort{Name: port.Name}), path("/number", networkingv1.ServiceBackendPort{Number: port.Port})}}}})
	}
	return objects.Cluster{Services: []*corev1.Service{svc}, Ingresses: []*networkingv1.Ingress{ing}}
}

// manyHosts is an Ingress with n hosts, all of them with TLS and the default backend.
func manyHosts(n int) objects.Cluster {
	ing := hostileIngress()
	ing.Spec.DefaultBackend = &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web"}}
	ing.Spec.TLS = make([]networkingv1.IngressTLS, 1)
	for i := range n {
		ing.Spec.TLS[0].Hosts = append(ing.Spec.TLS[0].Hosts, hostOf(i))
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: hostOf(i)})
	}
	return objects.Cluster{Ingresses: []*networkingv1.Ingress{ing}}
}

// badHosts is an Ingress with n hosts that are none, and a large annotation that is wrong.
func badHosts(n int) objects.Cluster {
	ing := hostileIngress()
	ing.Annotations = map[string]string{SSLRedirect: strings.Repeat("é", 100_000)}
	for i := range n {
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: fmt.Sprint("-", i)})
	}
	return objects.Cluster{Ingresses: []*networkingv1.Ingress{ing}}
}

// refusedSecrets are n Ingresses with a Secret each that the edge may not read.
func refusedSecrets(n int) (c objects.Cluster) {
	for i := range n {
		ing := hostileIngress()
		ing.Name = fmt.Sprint("i", i)
		ing.Spec.TLS = []networkingv1.IngressTLS{{SecretName: ing.Name, Hosts: []string{hostOf(i)}}}
		c.Ingresses = append(c.Ingresses, ing)
		c.Denied = append(c.Denied, objects.Denial{Kind: "Secret", Namespace: ing.Namespace, Name: ing.Name, Code: 403})
	}
	return c
}

func translateHostile(c objects.Cluster, o Options) *model.Snapshot {
	c.IngressClasses = largeCluster(0)[0].IngressClasses
	o.TLS = true
	return Translate(objects.Objects{c}, o)
}

// BenchmarkTranslateHostile is what one tenant can make each reconcile cost everyone; it is to grow linearly with n.
func BenchmarkTranslateHostile(b *testing.B) {
	for _, tt := range []struct {
		name string
		of   func(n int) objects.Cluster
	}{{"ports", manyPorts}, {"hosts", manyHosts}, {"bad-hosts", badHosts}, {"refused-secrets", refusedSecrets}} {
		for _, n := range []int{1000, 16000} {
			c := tt.of(n)
			b.Run(fmt.Sprintf("%s=%d", tt.name, n), func(b *testing.B) {
				for b.Loop() {
					translateHostile(c, Options{})
				}
			})
		}
	}
}

func TestEachOfManyPortsIsFound(t *testing.T) {
	for _, n := range []int{1, model.FewPorts, 2*model.FewPorts + 1} {
		s := translateHostile(manyPorts(n), Options{})
		port := map[string]uint16{}
		for i := range n {
			port[hostOf(i)] = uint16(i + 1)
		}
		if len(s.Routes) != 2*n || len(s.Problems) > 0 {
			t.Fatalf("%d ports give %d routes, %v", n, len(s.Routes), s.Problems)
		}
		for _, r := range s.Routes {
			if len(r.Backends) != 1 || r.Backends[0].Port != port[r.Host] {
				t.Errorf("of %d ports %s%s leads to %+v, want port %d", n, r.Host, r.Path, r.Backends, port[r.Host])
			}
		}
	}
}

// TestProblemsOfOneObjectAreBounded: they are told once each in the log of every edge and as Events.
func TestProblemsOfOneObjectAreBounded(t *testing.T) {
	for _, n := range []int{model.MaxProblems - 1, model.MaxProblems, 10_000} { // and the annotation
		s := translateHostile(badHosts(n), Options{})
		if want := min(n+1, model.MaxProblems+1); len(s.Problems) != want {
			t.Errorf("%d bad hosts are %d Problems, want %d", n, len(s.Problems), want)
		}
		if told := strings.Contains(fmt.Sprint(s.Problems), "more than 32 problems"); told != (n >= model.MaxProblems) {
			t.Errorf("%d bad hosts: that there are more is told: %v", n, told)
		}
		for _, p := range s.Problems {
			if len(p.Message) > maxMessage+len("...") || !utf8.ValidString(p.Message) {
				t.Errorf("message of %d bytes: %.80q", len(p.Message), p.Message)
			}
		}
	}
}

// TestSecretsOfOneIngressAreBounded: each that is wanted is a watch.
func TestSecretsOfOneIngressAreBounded(t *testing.T) {
	for n, problems := range map[int]int{maxTLSEntries: 0, maxTLSEntries + 1: 1, 100_000: 1} {
		ing := hostileIngress()
		for i := range n {
			ing.Spec.TLS = append(ing.Spec.TLS, networkingv1.IngressTLS{SecretName: fmt.Sprint("s", i), Hosts: []string{hostOf(i)}})
		}
		c := objects.Cluster{Ingresses: []*networkingv1.Ingress{ing}, IngressClasses: largeCluster(0)[0].IngressClasses}
		if got := len(WantedSecrets(c, Options{TLS: true})); got != maxTLSEntries {
			t.Errorf("of %d Secrets %d are wanted, want %d", n, got, maxTLSEntries)
		}
		told := 0
		for _, p := range translateHostile(c, Options{}).Problems {
			if p.Field == "spec.tls" {
				told++
			}
		}
		if told != problems {
			t.Errorf("%d entries: told %d times that there are too many, want %d", n, told, problems)
		}
	}
}

// TestEndpointsOfOneServiceAreBounded: an EndpointSlice of 1,000 endpoints and 20,000 ports is small, and 20 million of them.
func TestEndpointsOfOneServiceAreBounded(t *testing.T) {
	const ports, each = 150, 1000
	c := manyPorts(ports)
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: *hostile.DeepCopy()}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: hostile.Name}
	for _, p := range c.Services[0].Spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(p.Name), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)})
	}
	for i := range each {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{podIP(i)}})
	}
	c.EndpointSlices = append(c.EndpointSlices, slice)
	s := translateHostile(c, Options{Reach: model.ReachPods})
	held := 0
	for _, p := range s.Services[0].Ports {
		held += len(p.Endpoints)
	}
	if want := maxEndpoints + each; held != want || len(s.Problems) == 0 || s.Problems[0].Object != s.Services[0].Ref {
		t.Errorf("%d endpoints are held, want %d; problems %v", held, want, s.Problems)
	}
}

// TestAddressesAndNetworksOfOneServiceAreBounded: each is a rule on every edge.
func TestAddressesAndNetworksOfOneServiceAreBounded(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: hostile, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	for i := range 30_000 {
		svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, podIP(i))
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, podIP(i))
		svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, podIP(2*i)+"/32")
	}
	svc.Annotations = map[string]string{LoadBalancerIPs: strings.Join(svc.Spec.ExternalIPs, ",")}
	s := translateHostile(objects.Cluster{Services: []*corev1.Service{svc}}, Options{ClusterIPs: true, ExternalIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}})
	got := &s.Services[0]
	for what, n := range map[string][2]int{"VIPs": {len(got.RequestedVIPs), maxAddresses}, "external IPs": {len(got.ExternalIPs), maxAddresses},
		"cluster IPs": {len(got.ClusterIPs), maxAddresses}, "source ranges": {len(got.SourceRanges.Prefixes), maxSourceRanges}, "problems": {len(s.Problems), 4}} {
		if n[0] != n[1] {
			t.Errorf("%d %s, want %d: %v", n[0], what, n[1], s.Problems)
		}
	}
}

// TestNodesAreAskedOnceForAllPorts has as many ports and nodes as one Service can name.
func TestNodesAreAskedOnceForAllPorts(t *testing.T) {
	const ports, nodes = 100, 1000
	c := manyPorts(ports)
	spec := &c.Services[0].Spec
	spec.Type, spec.ExternalTrafficPolicy, spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 30900
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: *hostile.DeepCopy()}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: hostile.Name}
	for i := range spec.Ports {
		spec.Ports[i].NodePort = int32(30000 + i)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(spec.Ports[i].Name), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)})
	}
	for i := range nodes {
		name := fmt.Sprint("n", i)
		c.Nodes = append(c.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: podIP(100_000 + i)}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}})
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{podIP(i)}, NodeName: &name})
	}
	c.EndpointSlices = append(c.EndpointSlices, slice)
	asked := 0
	s := translateHostile(c, Options{Reach: model.ReachNodes, NodeHealthy: func(model.ObjectRef, uint16) bool { asked++; return asked%2 == 0 }})
	if got := len(s.Services[0].Ports[ports-1].Destinations); asked != nodes || got != nodes/2 {
		t.Errorf("%d nodes were asked %d times, and %d are sent to", nodes, asked, got)
	}
}

// TestRememberedProblemsAreBounded: those that one object has by the thousand are neither held nor sorted with everyone's each time.
func TestRememberedProblemsAreBounded(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: *hostile.DeepCopy(), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	svc.Annotations = map[string]string{LimitConnections: strings.Repeat("\x01", 200_000)}
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: *hostile.DeepCopy()}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: hostile.Name}
	for i := range maxSourceRanges {
		svc.Spec.LoadBalancerSourceRanges = append(svc.Spec.LoadBalancerSourceRanges, fmt.Sprint("x", i))
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprint("y", i)}})
	}
	c, memo := objects.Cluster{Services: []*corev1.Service{svc}, EndpointSlices: []*discoveryv1.EndpointSlice{slice}}, new(Memo)
	told := len(translateHostile(c, Options{Memo: memo}).Problems)
	remembered := memo.clusters[""].order[0].result.problems
	if want := 2 * (model.MaxProblems + 1); told != want || len(remembered) != want || cap(remembered) > 2*want {
		t.Errorf("%d Problems are told, %d remembered in room for %d; want %d", told, len(remembered), cap(remembered), want)
	}
	for _, p := range remembered {
		if len(p.Message) > maxMessage+len("...") {
			t.Errorf("a message of %d bytes is remembered", len(p.Message))
		}
	}
}
