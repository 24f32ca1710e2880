package status

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"sallyport/bench/lab/cluster"
	"sallyport/watcher/model"
)

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
