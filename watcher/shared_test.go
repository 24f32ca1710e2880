package watcher

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestObjectsShareValues: what two slices have alike they have once.
func TestObjectsShareValues(t *testing.T) {
	v := newSharedValues()
	slice := func() *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{
			Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80)), Protocol: new(corev1.ProtocolTCP)}},
			Endpoints: []discoveryv1.Endpoint{{NodeName: new("n1"), Zone: new("a"), TargetRef: &corev1.ObjectReference{Kind: strings.Clone("Pod"), Name: "p"},
				Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}}}}
		v.slimEndpointSlice(s)
		return s
	}
	a, b := slice(), slice()
	x, y := a.Endpoints[0], b.Endpoints[0]
	if x.NodeName != y.NodeName || x.Zone != y.Zone || x.Conditions != y.Conditions || a.Ports[0] != b.Ports[0] ||
		unsafe.StringData(x.TargetRef.Kind) != unsafe.StringData(y.TargetRef.Kind) {
		t.Errorf("%+v and %+v are apart", a, b)
	}
	if *x.NodeName != "n1" || !*x.Conditions.Ready || *x.Conditions.Terminating || *a.Ports[0].Port != 80 {
		t.Errorf("got %+v", a)
	}
}

func TestSharedValuesAreBounded(t *testing.T) {
	s := newShared[string]()
	for i := range 3 * mostShared {
		name := fmt.Sprint("n", i)
		if got := s.value(name); got != name || len(s.known) > mostShared {
			t.Fatalf("%q became %q, and %d values are held", name, got, len(s.known))
		}
	}
	if s.pointer(nil) != nil {
		t.Error("nil did not remain nil")
	}
	s.value("known")
	if n := testing.AllocsPerRun(100, func() { s.value("known") }); n != 0 {
		t.Errorf("a known value costs %v allocations", n)
	}
}
