package status

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"sallyport/watcher/model"
)

var errAway = errors.New("connection refused")

func forbidden(resource, name string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, name, errors.New("not granted"))
}

// A server counts the writes of each Service and answers with errors where it is told to.
type server struct {
	*fake.Clientset
	mu     sync.Mutex
	writes map[string]int
	fail   func(name string) error
	lease  *coordinationv1.Lease
}

func newServer() *server {
	s := &server{Clientset: fake.NewClientset(), writes: map[string]int{}, fail: func(string) error { return nil }}
	s.PrependReactor("patch", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		name := a.(clienttesting.PatchAction).GetName()
		s.writes[name]++
		return true, &corev1.Service{}, s.fail(name)
	})
	s.PrependReactor("*", "leases", s.keepLease)
	return s
}

// keepLease takes a hundredth of the time of the fake's own, which counts in hours of renewals.
func (s *server) keepLease(a clienttesting.Action) (bool, runtime.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := a.(clienttesting.UpdateAction); ok && a.GetVerb() != "get" { // create, too
		s.lease = a.GetObject().(*coordinationv1.Lease).DeepCopy()
	}
	if s.lease == nil {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "leases"}, LeaseName)
	}
	return true, s.lease.DeepCopy(), nil
}

func (s *server) failWith(fail func(name string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// total counts all writes.
func (s *server) total() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.writes {
		n += k
	}
	return n
}

func (s *server) written(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes[name]
}

// leadingWriter runs a Writer, in a bubble, until it leads.
func leadingWriter(t *testing.T, s *server, o Options) *Writer {
	t.Helper()
	o.Identity, o.LeaseNamespace, o.Log = "edge-1", "sallyport", testLog(t)
	w := newWriter(o, s)
	run(t, w)
	synctest.Wait()
	if w.leading() == nil {
		t.Fatal("does not lead")
	}
	return w
}

// snapshotOf has n Services, web-000 and so on, with a VIP each that the API server does not show.
func snapshotOf(n int) *model.Snapshot {
	s := &model.Snapshot{}
	for i := range n {
		ref := model.ObjectRef{Kind: "Service", Namespace: "shop", Name: fmt.Sprintf("web-%03d", i)}
		s.Services = append(s.Services, model.Service{Ref: ref, VIPs: addrs("192.0.2.10")})
		s.Statuses = append(s.Statuses, model.Status{Ref: ref, Served: true})
	}
	return s
}

// follow shows in the snapshot what was written.
func (s *server) follow(snapshot *model.Snapshot) *model.Snapshot { return s.followBut(snapshot, "") }

// followBut is follow without the writes of one Service, which failed.
func (s *server) followBut(snapshot *model.Snapshot, failed string) *model.Snapshot {
	for i := range snapshot.Statuses {
		if seen := &snapshot.Statuses[i]; s.written(seen.Ref.Name) > 0 && seen.Ref.Name != failed {
			seen.Marked, seen.Addresses = true, statusAddresses("Proxy", "192.0.2.10")
		}
	}
	return snapshot
}

func TestReconcileIsHeldToARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, woken := newServer(), make(chan struct{}, 100)
		w := leadingWriter(t, s, Options{Changed: func() { woken <- struct{}{} }})
		<-woken // it leads
		begin := time.Now()
		rounds := 0
		for ; ; rounds++ {
			if err := w.Reconcile(t.Context(), s.follow(snapshotOf(500))); err != nil {
				t.Fatal(err)
			}
			select {
			case <-woken:
				continue // by the end of a round with more to do
			default:
			}
			break
		}
		took := time.Since(begin)
		if want := (500 - writesBurst) * time.Second / writesPerSec; took < want || took > want+time.Second {
			t.Errorf("500 writes took %v, want %v", took, want)
		}
		if want := int((took+roundTime-1)/roundTime) - 1; s.total() != 500 || rounds != want {
			t.Errorf("%d writes with %d more rounds, want 500 with %d", s.total(), rounds, want)
		}
	})
}

// What the API server still shows, right after a write, is not written again.
func TestReconcileDoesNotRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, woken := newServer(), make(chan struct{}, 10)
		w := leadingWriter(t, s, Options{Changed: func() { woken <- struct{}{} }})
		<-woken
		for range 5 {
			if err := w.Reconcile(t.Context(), snapshotOf(1)); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.total(); got != 1 {
			t.Errorf("written %d times, want once", got)
		}
		begin := time.Now()
		<-woken
		if took := time.Since(begin); took != holdBack {
			t.Errorf("asks for another round after %v, want %v", took, holdBack)
		}
		if err := w.Reconcile(t.Context(), snapshotOf(1)); err != nil || s.total() != 2 {
			t.Errorf("after that: %v, %d writes, want 2", err, s.total())
		}
	})
}

func TestReconcileOneObjectDoesNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		w := leadingWriter(t, s, Options{})
		s.failWith(func(name string) error {
			switch {
			case name < "web-008":
				return apierrors.NewInternalError(errors.New("webhook"))
			case name == "web-008":
				return apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, name)
			}
			return nil
		})
		err := w.Reconcile(t.Context(), snapshotOf(10))
		if _, partial := errors.AsType[*model.PartialError](err); !partial {
			t.Fatalf("got %v, want a partial error", err)
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != failuresShown+1 || !strings.Contains(lines[0], "Service shop/web-000") || lines[failuresShown] != "and 3 more" {
			t.Errorf("got error %q", lines)
		}
		if s.written("web-009") != 1 {
			t.Error("the last Service was not written")
		}
		again := w.Reconcile(t.Context(), snapshotOf(10))
		if again == nil || again.Error() != err.Error() || s.total() != 10 {
			t.Errorf("within %v: %v, %d writes; want the same error and none", holdBack, again, s.total())
		}
		time.Sleep(holdBack) // in the bubble's time
		s.failWith(func(string) error { return nil })
		if err := w.Reconcile(t.Context(), snapshotOf(10)); err != nil || s.total() != 20 {
			t.Errorf("after that: %v, %d writes, want 20", err, s.total())
		}
	})
}

// An API server that is away is asked once, not once for each object.
func TestReconcileStopsWhenTheServerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		w := leadingWriter(t, s, Options{})
		for i, fault := range []error{errAway, apierrors.NewUnauthorized("x"), apierrors.NewTooManyRequests("x", 1), apierrors.NewServiceUnavailable("x")} {
			s.failWith(func(string) error { return fault })
			if err := w.Reconcile(t.Context(), snapshotOf(10)); !errors.Is(err, fault) {
				t.Errorf("got %v, want %v", err, fault)
			}
			if s.total() != i+1 {
				t.Errorf("%v: %d writes, want %d", fault, s.total(), i+1)
			}
		}
	})
}

// What is refused for one object, or takes too long, as a policy or webhook of its namespace may have it, is taken for a refusal
// or failure of all: it is tried after the others the next time.
func TestErrorThatSeemsToConcernAllDoesNotHoldUpOthers(t *testing.T) {
	for _, fault := range []error{forbidden("services/status", "web-000"), context.DeadlineExceeded} {
		t.Run(fault.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer()
				w := leadingWriter(t, s, Options{})
				s.failWith(func(name string) error {
					if name == "web-000" {
						return fault
					}
					return nil
				})
				for range 3 {
					if err := w.Reconcile(t.Context(), s.followBut(snapshotOf(10), "web-000")); err == nil {
						t.Error("want the error of web-000")
					}
					time.Sleep(refusalPause) // in the bubble's time
				}
				if s.written("web-009") != 1 || s.written("web-000") != 3 {
					t.Errorf("web-009 was written %d times, want 1; web-000 %d times, want 3", s.written("web-009"), s.written("web-000"))
				}
			})
		})
	}
}

func TestRefusedKindIsAProblemAndAskedForSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, woken := newServer(), make(chan struct{}, 10)
		w := leadingWriter(t, s, Options{Changed: func() { woken <- struct{}{} }})
		<-woken
		s.failWith(func(name string) error { return forbidden("services/status", name) })
		for range 3 {
			if err := w.Reconcile(t.Context(), snapshotOf(10)); !apierrors.IsForbidden(err) {
				t.Errorf("got %v, want a refusal", err)
			}
		}
		if s.total() != 1 {
			t.Errorf("%d writes, want 1", s.total())
		}
		<-woken
		got := w.Problems()
		if len(got) != 1 || got[0].Field != "services/status" || got[0].Reason != model.ReasonStatusForbidden ||
			got[0].Object != (model.ObjectRef{Kind: "Cluster", Name: "default"}) {
			t.Errorf("got problems %v", got)
		}
		time.Sleep(refusalPause) // in the bubble's time
		s.failWith(func(string) error { return nil })
		if err := w.Reconcile(t.Context(), snapshotOf(10)); err != nil || len(w.Problems()) > 0 {
			t.Errorf("when it is permitted: %v, problems %v", err, w.Problems())
		}
		<-woken
	})
}

func TestReconcileDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		standby := newWriter(Options{Identity: "edge-2", LeaseNamespace: "sallyport", Log: testLog(t)}, s)
		if err := standby.Reconcile(t.Context(), snapshotOf(1)); err != nil || s.total() > 0 {
			t.Errorf("without the Lease: %v, %d writes", err, s.total())
		}
		w := leadingWriter(t, s, Options{})
		stale := snapshotOf(1)
		stale.Stale = true
		if err := w.Reconcile(t.Context(), stale); err != nil || s.total() > 0 {
			t.Errorf("for a stale snapshot: %v, %d writes", err, s.total())
		}
	})
}

func TestNewWantsItsOptions(t *testing.T) {
	if _, err := New(Options{Identity: "edge-1", LeaseNamespace: "sallyport"}); err == nil {
		t.Error("a Writer without an API server was made")
	}
}
