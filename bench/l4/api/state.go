package api

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Ports of every Service and of its endpoints.
const (
	ServicePort  = 80
	EndpointPort = 8080
)

// NodePorts is how many Services have a node port: the size of the API server's default range, 30000-32767.
const NodePorts = 2768

const firstNodePort = 30000

// Ranges that the addresses of Services and endpoints come from.
var (
	// VIPs are the LoadBalancer IPs (RFC 2544: set aside for benchmarks).
	VIPs = netip.MustParsePrefix("198.18.0.0/15")
	// Pods are the endpoints' IPs.
	Pods = netip.MustParsePrefix("10.240.0.0/12")

	clusterIPs = netip.MustParsePrefix("10.96.0.0/15")
)

// NodeName is the node that all endpoints are on.
const NodeName = "node-1"

// namespace holds all Services.
const namespace = "default"

// created is when the first Service was; each is a second younger than the one before.
var created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A State is the objects of a cluster. Servers share it, so it is not changed once one serves it.
type State struct {
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
	Nodes    []*corev1.Node
}

// NewState makes that many LoadBalancer Services of one TCP port, each with endpoints of its own: no two Services share
// an address.
func NewState(services, endpoints int, nodes ...*corev1.Node) *State {
	s := &State{Nodes: nodes}
	for i := range services {
		s.Services = append(s.Services, service(i))
		s.Slices = append(s.Slices, Slice(i, Endpoints(i*endpoints, endpoints)))
	}
	return s
}

// VIP is the LoadBalancer IP of the i-th Service; VIPs ascend.
func VIP(i int) netip.Addr { return offset(VIPs.Addr(), i+1) }

// NodePort is that of the i-th Service, 0 for those after the first NodePorts.
func NodePort(i int) uint16 {
	if i >= NodePorts {
		return 0
	}
	return uint16(firstNodePort + i)
}

// Endpoints are count addresses of pods, starting with the first-th.
func Endpoints(first, count int) []netip.Addr {
	var out []netip.Addr
	for i := range count {
		out = append(out, offset(Pods.Addr(), first+i+1))
	}
	return out
}

// offset is the IPv4 address n after a.
func offset(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := (uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])) + uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func serviceName(i int) string { return fmt.Sprintf("s%05d", i) }

// metadata is the metadata of an object that belongs to the i-th Service.
func metadata(i int, kind, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Namespace: namespace, UID: types.UID(kind + "-" + name), ResourceVersion: "1",
		CreationTimestamp: metav1.NewTime(created.Add(time.Duration(i) * time.Second)),
	}
}

func service(i int) *corev1.Service {
	clusterIP, vip, hasNodePort := offset(clusterIPs.Addr(), i+10).String(), VIP(i).String(), NodePort(i) != 0
	families, inside, mode := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster, corev1.LoadBalancerIPModeVIP
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metadata(i, "service", serviceName(i)),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerIP: vip, AllocateLoadBalancerNodePorts: &hasNodePort,
			ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			// What the API server fills in, and clients rely on.
			IPFamilyPolicy: &families, InternalTrafficPolicy: &inside, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			Selector: map[string]string{"app": serviceName(i)}, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{
				Name: "http", Protocol: corev1.ProtocolTCP, Port: ServicePort,
				TargetPort: intstr.FromInt32(EndpointPort), NodePort: int32(NodePort(i)),
			}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: vip, IPMode: &mode}}}},
	}
}

// Slice is the EndpointSlice of the i-th Service, with ready endpoints at the addresses.
func Slice(i int, addresses []netip.Addr) *discoveryv1.EndpointSlice {
	name, port, protocol, ready, node := "http", int32(EndpointPort), corev1.ProtocolTCP, true, NodeName
	s := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metadata(i, "slice", serviceName(i)+"-slice"),
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: serviceName(i)}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
		})
	}
	return s
}

// Node is a Ready node with that InternalIP. podCIDR may be the zero Prefix.
func Node(name string, internalIP netip.Addr, podCIDR netip.Prefix) *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("node-" + name), ResourceVersion: "1"},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: internalIP.String()}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	if podCIDR.IsValid() {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = podCIDR.String(), []string{podCIDR.String()}
	}
	return n
}
