package translate

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// largeCluster has 100 nodes, that many Services with five endpoints each, and half as many Ingresses.
func largeCluster(services int) objects.Objects {
	const nodes, endpoints = 100, 5
	var c objects.Cluster
	for i := range nodes {
		c.Nodes = append(c.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}, Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.0.0.%d", i+1)}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}})
	}
	for i := range services {
		meta := metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i%50), Name: fmt.Sprint("s", i)}
		c.Services = append(c.Services, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: int32(1 + i), Protocol: corev1.ProtocolTCP}}}})
		slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: metav1.ObjectMeta{
			Namespace: meta.Namespace, Name: meta.Name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: meta.Name}},
			Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}}
		for j := range endpoints {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{NodeName: new(fmt.Sprint("n", (i+j)%nodes)),
				Addresses: []string{podIP(i*endpoints + j)}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p"}})
		}
		c.EndpointSlices = append(c.EndpointSlices, slice)
		if i%2 == 0 {
			c.Ingresses = append(c.Ingresses, &networkingv1.Ingress{ObjectMeta: meta, Spec: networkingv1.IngressSpec{IngressClassName: new("sallyport"),
				Rules: []networkingv1.IngressRule{{Host: meta.Name + ".example.com", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
					Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: new(networkingv1.PathTypePrefix), Backend: networkingv1.IngressBackend{
						Service: &networkingv1.IngressServiceBackend{Name: meta.Name, Port: networkingv1.ServiceBackendPort{Name: "http"}}}}}}}}}}})
		}
	}
	c.IngressClasses = []*networkingv1.IngressClass{{ObjectMeta: metav1.ObjectMeta{Name: "sallyport"}, Spec: networkingv1.IngressClassSpec{Controller: IngressController}}}
	return objects.Objects{c}
}

func podIP(i int) string { return fmt.Sprintf("10.%d.%d.%d", 64+i>>16, i>>8&255, i&255) }

// BenchmarkTranslate is what one reconcile costs; it is to grow linearly with the number of Services.
func BenchmarkTranslate(b *testing.B) {
	for _, services := range []int{1000, 10000} {
		in := largeCluster(services)
		for _, reach := range []model.Reach{model.ReachPods, model.ReachNodes} {
			b.Run(fmt.Sprintf("services=%d/reach=%s", services, reach), func(b *testing.B) {
				b.ReportAllocs()
				before := cpuTime(b)
				for b.Loop() {
					if s := Translate(in, Options{Reach: reach}); len(s.Services) != services || len(s.Routes) != services/2 {
						b.Fatalf("%d services, %d routes, %v", len(s.Services), len(s.Routes), s.Problems)
					}
				}
				b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// loadBalancers makes LoadBalancer Services of those of a cluster, with an address in spec and status.
func loadBalancers(c *objects.Cluster) {
	for i, s := range c.Services {
		s.Spec.Type, s.Spec.LoadBalancerIP = corev1.ServiceTypeLoadBalancer, podIP(i)
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: podIP(i)}}
	}
}

// BenchmarkTranslateChange is what a reconcile costs after one EndpointSlice has changed.
func BenchmarkTranslateChange(b *testing.B) {
	for _, of := range []string{"NodePort", "LoadBalancer", "Ingress"} {
		in := largeCluster(10000)
		if of != "Ingress" {
			in[0].Ingresses = nil
		}
		if of == "LoadBalancer" {
			loadBalancers(&in[0])
		}
		b.Run("services=10000/of="+of, func(b *testing.B) {
			o := Options{Reach: model.ReachPods, Memo: new(Memo)}
			Translate(in, o)
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				in[0].EndpointSlices[0] = in[0].EndpointSlices[0].DeepCopy()
				Translate(in, o)
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpuTime is what the process has used, the garbage collector's share included: unlike wall time it hardly depends on
// what else the machine does.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
