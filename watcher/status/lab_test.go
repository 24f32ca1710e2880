package status

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// The snapshots of these tests are made from what the API server has, as translation would.

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
