package status

// What is tested here is as much the API server as the package, so it is the real one.

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sallyport/watcher/model"
)

func TestServiceStatus(t *testing.T) {
	l := newLabCase(t)
	l.writeStatus(func(s *corev1.ServiceStatus) {
		s.Conditions = []metav1.Condition{{Type: "example.com/Other", Status: "True", Reason: "Any", LastTransitionTime: metav1.Now()}}
	})
	w, _ := l.writer("edge-1")
	l.waitLeading(w)

	l.reconcile(w, l.snapshot(true, "192.0.2.10", "2001:db8::10"))
	l.want("192.0.2.10 Proxy, 2001:db8::10 Proxy, example.com/Other=True, sallyport.io/LoadBalancer=True")
	version := l.service().ResourceVersion
	l.reconcile(w, l.snapshot(true, "192.0.2.10", "2001:db8::10"))
	if got := l.service().ResourceVersion; got != version {
		t.Error("the status was written again without a difference")
	}
	l.reconcile(w, l.snapshot(true, "192.0.2.11"))
	l.want("192.0.2.11 Proxy, example.com/Other=True, sallyport.io/LoadBalancer=True")
	l.reconcile(w, l.snapshot(true))
	l.want("example.com/Other=True")
	l.reconcile(w, l.snapshot(true, "192.0.2.10"))
	l.want("192.0.2.10 Proxy, example.com/Other=True, sallyport.io/LoadBalancer=True")
	l.reconcile(w, l.snapshot(false))
	l.want("example.com/Other=True")
}

// The API server itself clears the addresses of a Service that is of type LoadBalancer no more; the condition is ours.
func TestServiceStatusAfterChangeOfType(t *testing.T) {
	l := newLabCase(t)
	w, _ := l.writer("edge-1")
	l.waitLeading(w)
	l.reconcile(w, l.snapshot(true, "192.0.2.10"))
	l.want("192.0.2.10 Proxy, sallyport.io/LoadBalancer=True")
	_, err := l.c.Client().CoreV1().Services(l.ns).Patch(t.Context(), "web", types.MergePatchType,
		[]byte(`{"spec":{"type":"ClusterIP","loadBalancerClass":null}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.reconcile(w, l.snapshot(false))
	l.want("")
}

func TestForeignServiceStatusIsLeftAlone(t *testing.T) {
	foreign := func(s *corev1.ServiceStatus) {
		s.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.7"}}
	}
	t.Run("never ours", func(t *testing.T) {
		l := newLabCase(t)
		l.writeStatus(foreign)
		w, _ := l.writer("edge-1")
		l.waitLeading(w)
		l.reconcile(w, l.snapshot(true))
		l.reconcile(w, l.snapshot(false))
		l.want("198.51.100.7 VIP")
	})
	t.Run("written after the snapshot", func(t *testing.T) {
		l := newLabCase(t)
		s := l.snapshot(true, "192.0.2.10")
		l.writeStatus(foreign)
		w, _ := l.writer("edge-1")
		l.waitLeading(w)
		l.reconcile(w, s)
		l.want("198.51.100.7 VIP")
	})
	t.Run("written over ours, which we give up then", func(t *testing.T) {
		l := newLabCase(t)
		w, _ := l.writer("edge-1")
		l.waitLeading(w)
		l.reconcile(w, l.snapshot(true, "192.0.2.10"))
		s := l.snapshot(false)
		l.writeStatus(foreign)
		l.reconcile(w, s)
		l.want("198.51.100.7 VIP")
	})
	t.Run("known, and ours by class", func(t *testing.T) {
		l := newLabCase(t)
		l.writeStatus(foreign)
		w, _ := l.writer("edge-1")
		l.waitLeading(w)
		l.reconcile(w, l.snapshot(true, "192.0.2.10"))
		l.want("192.0.2.10 Proxy, sallyport.io/LoadBalancer=True")
	})
}

// A snapshot that is older than the object must not write to it.
func TestServiceMadeAnew(t *testing.T) {
	l := newLabCase(t)
	w, _ := l.writer("edge-1")
	l.waitLeading(w)
	s, old := l.snapshot(true, "192.0.2.10"), l.uid(l.ref())
	w.o.UID = func(model.ObjectRef) string { return old }
	l.c.Delete(t, l.ns, testService)
	l.reconcile(w, s) // gone: no error
	l.c.Apply(t, l.ns, testService)
	w.leading().attempts = map[model.ObjectRef]attempt{}
	l.reconcile(w, s)
	l.want("")
}

func (l *labCase) ingressSnapshot(served bool) *model.Snapshot {
	l.t.Helper()
	i := l.getIngress()
	entries := make([]corev1.LoadBalancerIngress, 0, len(i.Status.LoadBalancer.Ingress))
	for _, e := range i.Status.LoadBalancer.Ingress {
		entries = append(entries, corev1.LoadBalancerIngress{IP: e.IP, Hostname: e.Hostname})
	}
	ref := model.ObjectRef{Kind: "Ingress", Namespace: l.ns, Name: "web"}
	return &model.Snapshot{Statuses: []model.Status{labStatus(ref, served, entries, nil)}}
}

func (l *labCase) getIngress() *networkingv1.Ingress {
	l.t.Helper()
	i, err := l.c.Client().NetworkingV1().Ingresses(l.ns).Get(l.t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return i
}

func TestIngressStatus(t *testing.T) {
	l := newLabCase(t)
	l.c.Apply(t, l.ns, `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec: {ingressClassName: sallyport, defaultBackend: {service: {name: web, port: {number: 80}}}}
`)
	l.ingress = addrs("192.0.2.10", "2001:db8::10")
	w, _ := l.writer("edge-1")
	l.waitLeading(w)
	want := func(want ...string) {
		t.Helper()
		var got []string
		for _, e := range l.getIngress().Status.LoadBalancer.Ingress {
			got = append(got, e.IP)
		}
		if !slices.Equal(got, want) {
			t.Errorf("the Ingress shows %v, want %v", got, want)
		}
	}
	l.reconcile(w, l.ingressSnapshot(false))
	want()
	l.reconcile(w, l.ingressSnapshot(true))
	want("192.0.2.10", "2001:db8::10")
	l.reconcile(w, l.ingressSnapshot(false))
	want()

	i := l.getIngress()
	i.Status.LoadBalancer.Ingress = []networkingv1.IngressLoadBalancerIngress{{IP: "192.0.2.10"}, {IP: "2001:db8::10"}}
	if _, err := l.c.Client().NetworkingV1().Ingresses(l.ns).UpdateStatus(t.Context(), i, metav1.UpdateOptions{FieldManager: "other"}); err != nil {
		t.Fatal(err)
	}
	l.reconcile(w, l.ingressSnapshot(false))
	want("192.0.2.10", "2001:db8::10") // equal to ours, and written by another
}
