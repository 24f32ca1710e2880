package status

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"sallyport/bench/lab/cluster"
	"sallyport/watcher/model"
)

var lab = cluster.Shared{Options: cluster.Options{Nodes: 1}}

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

const testService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  loadBalancerClass: sallyport.io/edge
  ports: [{port: 80}]
`

// the snapshots of these tests are made from what the API server has, as translation would.

func labStatus(ref model.ObjectRef, served bool, entries []corev1.LoadBalancerIngress, conditions []metav1.Condition) model.Status {
	s := model.Status{Ref: ref, Served: served}
	for _, e := range entries {
		a := model.StatusAddress{Hostname: e.Hostname}
		a.IP, _ = netip.ParseAddr(e.IP)
		if e.IPMode != nil {
			a.IPMode = string(*e.IPMode)
		}
		s.Addresses = append(s.Addresses, a)
	}
	for _, c := range conditions {
		s.Marked = s.Marked || c.Type == model.StatusCondition
	}
	return s
}

// labCase is a namespace with the Service and its Writer.
type labCase struct {
	t       *testing.T
	c       *cluster.Cluster
	ns      string
	ingress []netip.Addr
}

func newLabCase(t *testing.T) *labCase {
	c := lab.Cluster(t)
	l := &labCase{t: t, c: c, ns: c.Namespace(t)}
	c.Apply(t, l.ns, testService)
	return l
}

func (l *labCase) service() *corev1.Service {
	l.t.Helper()
	s, err := l.c.Client().CoreV1().Services(l.ns).Get(l.t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *labCase) ref() model.ObjectRef {
	return model.ObjectRef{Kind: "Service", Namespace: l.ns, Name: "web"}
}

// snapshot is of the Service as it is now, with those VIPs.
func (l *labCase) snapshot(served bool, vips ...string) *model.Snapshot {
	l.t.Helper()
	s := l.service()
	service := model.Service{Ref: l.ref(), LoadBalancer: served, VIPs: addrs(vips...)}
	return &model.Snapshot{
		Services: []model.Service{service},
		Statuses: []model.Status{labStatus(l.ref(), served, s.Status.LoadBalancer.Ingress, s.Status.Conditions)},
	}
}

// writer starts a Writer with a Lease in the namespace. stop ends it.
func (l *labCase) writer(identity string) (w *Writer, stop func()) {
	l.t.Helper()
	w, err := New(Options{
		Config: l.c.RESTConfig(), Identity: identity, LeaseNamespace: l.ns,
		IngressAddresses: func() []netip.Addr { return l.ingress },
		UID:              func(ref model.ObjectRef) string { return l.uid(ref) },
		Log:              testLog(l.t),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return w, run(l.t, w)
}

func (l *labCase) uid(ref model.ObjectRef) string {
	var o metav1.Object
	var err error
	switch ref.Kind {
	case "Service":
		o, err = l.c.Client().CoreV1().Services(ref.Namespace).Get(context.Background(), ref.Name, metav1.GetOptions{})
	case "Ingress":
		o, err = l.c.Client().NetworkingV1().Ingresses(ref.Namespace).Get(context.Background(), ref.Name, metav1.GetOptions{})
	case "Node":
		o, err = l.c.Client().CoreV1().Nodes().Get(context.Background(), ref.Name, metav1.GetOptions{})
	}
	if err != nil {
		return ""
	}
	return string(o.GetUID())
}

func (l *labCase) waitLeading(w *Writer) {
	l.t.Helper()
	cluster.Eventually(l.t, 30*time.Second, func() error {
		if w.leading() == nil {
			return fmt.Errorf("%s does not lead, %q does", w.identity, w.Leader())
		}
		return nil
	})
}

func (l *labCase) reconcile(w *Writer, s *model.Snapshot) {
	l.t.Helper()
	if err := w.Reconcile(l.t.Context(), s); err != nil {
		l.t.Fatal(err)
	}
}

// shown is the Service's status in short: its addresses with their ipMode, and the types of its conditions.
func (l *labCase) shown() string {
	l.t.Helper()
	s := l.service()
	var words []string
	for _, e := range s.Status.LoadBalancer.Ingress {
		words = append(words, e.IP+e.Hostname+" "+string(ptrValue(e.IPMode)))
	}
	for _, c := range s.Status.Conditions {
		words = append(words, c.Type+"="+string(c.Status))
	}
	return strings.Join(words, ", ")
}

func (l *labCase) want(want string) {
	l.t.Helper()
	if got := l.shown(); got != want {
		l.t.Errorf("the Service shows %q, want %q", got, want)
	}
}

func ptrValue[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// writeStatus writes as another controller does, the whole status.
func (l *labCase) writeStatus(change func(*corev1.ServiceStatus)) {
	l.t.Helper()
	s := l.service()
	change(&s.Status)
	_, err := l.c.Client().CoreV1().Services(l.ns).UpdateStatus(l.t.Context(), s, metav1.UpdateOptions{FieldManager: "other"})
	if err != nil {
		l.t.Fatal(err)
	}
}

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

func TestOneWriterAndItsSuccessor(t *testing.T) {
	l := newLabCase(t)
	first, stop := l.writer("edge-1")
	l.waitLeading(first)
	second, _ := l.writer("edge-2")
	cluster.Eventually(t, 10*time.Second, func() error {
		if got := second.Leader(); got != first.identity {
			return fmt.Errorf("edge-2 takes %q for the leader, want %q", got, first.identity)
		}
		return nil
	})
	l.reconcile(second, l.snapshot(true, "192.0.2.99"))
	l.want("")
	l.reconcile(first, l.snapshot(true, "192.0.2.10"))
	stop()
	l.reconcile(first, l.snapshot(true, "192.0.2.98"))
	l.want("192.0.2.10 Proxy, sallyport.io/LoadBalancer=True")
	begin := time.Now()
	l.waitLeading(second)
	if took := time.Since(begin); took > leaseDuration/2 {
		t.Errorf("taking over a Lease that was released took %v", took)
	}
	l.reconcile(second, l.snapshot(true, "192.0.2.11")) // forces nothing: both are one field manager
	l.want("192.0.2.11 Proxy, sallyport.io/LoadBalancer=True")
	l.reconcile(second, l.snapshot(false))
	l.want("")
}

// events lists our Events in a namespace, as far as they are about an object of that name.
func (l *labCase) events(ns, object string) []corev1.Event {
	l.t.Helper()
	list, err := l.c.Client().CoreV1().Events(ns).List(l.t.Context(), metav1.ListOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(e corev1.Event) bool {
		return e.ReportingController != ReportingController || e.InvolvedObject.Name != object
	})
}

func TestEvents(t *testing.T) {
	l := newLabCase(t)
	problems := []model.Problem{
		{Object: model.ObjectRef{Kind: "Node", Name: "node-1"}, Reason: model.ReasonAddressTaken, Message: "of test " + l.ns},
		{Object: l.ref(), Field: "spec.loadBalancerIP", Reason: model.ReasonAddressNotInPool, Message: strings.Repeat("é", 600)},
		{Object: model.ObjectRef{Kind: "Service", Namespace: l.ns, Name: "gone"}, Reason: model.ReasonPortConflict, Message: "no uid"},
		{Object: model.ObjectRef{Kind: "Cluster", Name: "default"}, Reason: model.ReasonKindForbidden, Message: "no object"},
	}
	for life := int32(1); life <= 3; life++ { // each a restart, after which all is sent again
		w, stop := l.writer(fmt.Sprintf("edge-%d", life))
		w.Report(problems)
		cluster.Eventually(t, 30*time.Second, func() error {
			if got := l.events(l.ns, "web"); len(got) != 1 || got[0].Count != life || got[0].ReportingInstance != w.o.Identity {
				return fmt.Errorf("in life %d there are Events %+v", life, got)
			}
			return nil
		})
		stop()
	}
	e := l.events(l.ns, "web")[0]
	if e.Type != corev1.EventTypeWarning || e.Reason != "AddressNotInPool" || e.InvolvedObject.UID != l.service().UID ||
		!strings.HasPrefix(e.Message, "spec.loadBalancerIP: éé") || len(e.Message) > maxMessage {
		t.Errorf("got Event %+v", e)
	}
	node := slices.DeleteFunc(l.events("default", "node-1"), func(e corev1.Event) bool { return !strings.Contains(e.Message, l.ns) })
	if len(node) != 1 {
		t.Errorf("got Events of the Node %+v, want one", node)
	}
	if got := l.c.Kubectl(t, "-n", l.ns, "describe", "service", "web"); !strings.Contains(got, ReportingController) {
		t.Errorf("kubectl describe does not show who reports:\n%s", got)
	}
}

func TestAPIServerOutage(t *testing.T) {
	l := newLabCase(t)
	w, _ := l.writer("edge-1")
	l.waitLeading(w)
	s := l.snapshot(true, "192.0.2.10")
	if err := l.c.StopProgram("kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	if err := w.Reconcile(t.Context(), s); err == nil {
		t.Error("a write to an API server that is away succeeds")
	}
	cluster.Eventually(t, 2*leaseDuration, func() error {
		if w.leading() != nil {
			return fmt.Errorf("leads although the Lease cannot be renewed")
		}
		return nil
	})
	if err := w.Reconcile(t.Context(), s); err != nil {
		t.Errorf("without leading: %v", err)
	}
	if err := l.c.StartProgram("kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, 30*time.Second, func() error { return l.c.WaitAPI(t.Context()) })
	l.waitLeading(w)
	l.reconcile(w, s)
	l.want("192.0.2.10 Proxy, sallyport.io/LoadBalancer=True")
}

// What each verb that deploy/rbac grants is for, and what is said where it is missing.
func TestVerbs(t *testing.T) {
	l := newLabCase(t)
	l.c.Apply(t, l.ns, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: edge}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: edge}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [sallyport], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: edge}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: edge}
subjects: [{kind: ServiceAccount, name: edge}]
`)
	w := l.writerAs("system:serviceaccount:" + l.ns + ":edge")
	l.waitLeading(w)
	w.Report([]model.Problem{{Object: l.ref(), Reason: model.ReasonPortConflict, Message: "x"}})
	err := w.Reconcile(t.Context(), l.snapshot(true, "192.0.2.10"))
	if err == nil || !apierrors.IsForbidden(err) {
		t.Errorf("got %v, want a refusal", err)
	}
	cluster.Eventually(t, 10*time.Second, func() error {
		var got []string
		for _, p := range w.Problems() {
			got = append(got, p.Field)
		}
		if want := []string{"events", "services/status"}; !slices.Equal(got, want) {
			return fmt.Errorf("got problems on %v, want on %v", got, want)
		}
		return nil
	})
	l.c.Apply(t, l.ns, `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: edge}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [sallyport], verbs: [get, update]}
- {apiGroups: [""], resources: [services/status], verbs: [patch]}
- {apiGroups: [""], resources: [events], verbs: [create, patch]}
`)
	cluster.Eventually(t, 3*refusalPause, func() error {
		if err := w.Reconcile(t.Context(), l.snapshot(true, "192.0.2.10")); err != nil {
			return err
		}
		if got := w.Problems(); len(got) > 0 {
			return fmt.Errorf("problems stay: %v", got)
		}
		return nil
	})
	l.want("192.0.2.10 Proxy, sallyport.io/LoadBalancer=True")
}

// writerAs starts a Writer that is another user.
func (l *labCase) writerAs(user string) *Writer {
	l.t.Helper()
	config := l.c.RESTConfig()
	config.Impersonate.UserName = user
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		l.t.Fatal(err)
	}
	w := newWriter(Options{Config: config, Identity: "edge-1", LeaseNamespace: l.ns, UID: l.uid, Log: testLog(l.t)}, client)
	run(l.t, w)
	return w
}
