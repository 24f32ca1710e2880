package objects

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// largeCluster has 10,000 Services of five endpoints each, as they are cached from an API server.
func largeCluster() Cluster {
	const services, endpoints = 10_000, 5
	var c Cluster
	created := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	for i := range services {
		meta := metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i%50), Name: fmt.Sprint("service-", i), UID: types.UID(fmt.Sprintf("%036d", i)),
			ResourceVersion: fmt.Sprint(i), CreationTimestamp: created, Labels: map[string]string{"app.kubernetes.io/name": "service", "app.kubernetes.io/part-of": "shop"}}
		c.Services = append(c.Services, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort,
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app.kubernetes.io/name": "service"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: int32(1 + i), Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}}}})
		meta.Name += "-abcde"
		meta.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
		slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: meta,
			Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}}
		for j := range endpoints {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{NodeName: new(fmt.Sprint("node-", (i+j)%100)),
				Addresses: []string{fmt.Sprintf("10.244.%d.%d", i/250, i%250)}, Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprintf("service-%d-%d", i, j)}})
		}
		c.EndpointSlices = append(c.EndpointSlices, slice)
	}
	return c
}

// BenchmarkWrite is what keeping the last-good file costs, every 30 s at most.
func BenchmarkWrite(b *testing.B) {
	c := largeCluster()
	b.ReportAllocs()
	for b.Loop() {
		var out bytes.Buffer
		if err := Write(&out, c); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(out.Len()))
	}
}

// BenchmarkParse is how long a start without the API server waits for the last-good file.
func BenchmarkParse(b *testing.B) {
	var out bytes.Buffer
	if err := Write(&out, largeCluster()); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(out.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if m := Parse("objects.yaml", out.Bytes()); len(m.Objects.Services) != 10_000 || len(m.Errors) > 0 {
			b.Fatal(len(m.Objects.Services), m.Errors)
		}
	}
}
