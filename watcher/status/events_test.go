package status

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	clienttesting "k8s.io/client-go/testing"

	"sallyport/watcher/model"
)

func problemOf(name, message string) model.Problem {
	return model.Problem{Object: model.ObjectRef{Kind: "Service", Namespace: "shop", Name: name}, Reason: model.ReasonPortConflict, Message: message}
}

func problemsOf(n int) []model.Problem {
	var list []model.Problem
	for _, s := range snapshotOf(n).Services {
		list = append(list, problemOf(s.Ref.Name, "m"))
	}
	return list
}

func uidOf(ref model.ObjectRef) string { return "uid-" + ref.Name }

// events returns what the server has, by object.
func (s *server) events(t *testing.T) map[string]corev1.Event {
	t.Helper()
	list, err := s.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]corev1.Event{}
	for _, e := range list.Items {
		found[e.InvolvedObject.Name] = e
	}
	return found
}

func TestEventsAreHeldToARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		w := leadingWriter(t, s, Options{UID: uidOf})
		w.Report(problemsOf(200))
		synctest.Wait()
		if got := len(s.events(t)); got != eventsBurst {
			t.Errorf("%d Events at once, want %d", got, eventsBurst)
		}
		time.Sleep(10*time.Second + time.Millisecond) // in the bubble's time
		synctest.Wait()
		if got, want := len(s.events(t)), eventsBurst+10*eventsPerSec; got != want {
			t.Errorf("%d Events after 10 s, want %d", got, want)
		}
		w.Report(problemsOf(120)) // 80 are solved before their turn
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := len(s.events(t)); got != 120 {
			t.Errorf("%d Events in the end, want 120", got)
		}
	})
}

// One namespace with many problems does not keep those of another from being told.
func TestEventsOfEachNamespaceInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		w := leadingWriter(t, s, Options{UID: uidOf})
		late := problemOf("web", "m")
		late.Object.Namespace = "zoo"
		w.Report(append(problemsOf(2000), late))
		time.Sleep(time.Second) // in the bubble's time
		synctest.Wait()
		w.Report(append(problemsOf(2000), late, model.Problem{Object: late.Object, Reason: late.Reason, Message: "another"}))
		time.Sleep(eventBatch * time.Second / eventsPerSec)
		synctest.Wait()
		list, err := s.CoreV1().Events("zoo").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 2 {
			t.Errorf("%v, %d Events of namespace zoo, want 2", err, len(list.Items))
		}
	})
}

func TestEventIsRenewedWhileTheProblemLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		w := leadingWriter(t, s, Options{UID: uidOf})
		count := func() int32 { synctest.Wait(); return s.events(t)["web"].Count }
		list := []model.Problem{problemOf("web", "m")}
		w.Report(list)
		for range 10 { // a Problem that comes and goes is not news
			w.Report(nil)
			synctest.Wait()
			w.Report(list)
			synctest.Wait()
		}
		if got := count(); got != 1 {
			t.Errorf("the Event counts %d, want 1", got)
		}
		first := s.events(t)["web"].LastTimestamp
		time.Sleep(renewAfter + time.Second)
		if got := count(); got != 2 || !s.events(t)["web"].LastTimestamp.After(first.Time) {
			t.Errorf("after %v the Event counts %d, want 2 and a later time", renewAfter, got)
		}
		w.Report(nil)
		time.Sleep(3 * renewAfter)
		if got := count(); got != 2 {
			t.Errorf("the Event of a Problem that is solved counts %d, want 2", got)
		}
		if w.problems.due(); len(w.problems.next) > 0 {
			t.Errorf("what is solved and over is kept: %v", w.problems.next)
		}
	})
}

// kubectl describe shows the Events of an object by its uid: one that was made anew gets its own at once.
func TestObjectMadeAnewGetsItsEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		var uid atomic.Value
		uid.Store(uidOf(problemOf("web", "").Object))
		w := leadingWriter(t, s, Options{UID: func(model.ObjectRef) string { return uid.Load().(string) }})
		w.Report([]model.Problem{problemOf("web", "m")})
		synctest.Wait()
		w.Report(nil)
		uid.Store("uid-2")
		w.Report([]model.Problem{problemOf("web", "m")})
		time.Sleep(time.Second)
		synctest.Wait()
		list, err := s.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
		found := slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.InvolvedObject.UID == "uid-2" })
		if err != nil || len(list.Items) != 2 || !found {
			t.Errorf("%v, want an Event on each of two objects, got %+v", err, list.Items)
		}
	})
}

func TestEventsOfAStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		leader := leadingWriter(t, s, Options{})
		w := newWriter(Options{Identity: "edge-2", LeaseNamespace: "sallyport", UID: uidOf, Log: testLog(t)}, s)
		run(t, w)
		w.Report(problemsOf(1))
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := s.events(t); len(got) > 0 || w.Leader() != leader.identity {
			t.Errorf("edge-2, with leader %q, sent %v", w.Leader(), got)
		}
	})
}

func TestEventThatCannotBeSent(t *testing.T) {
	for _, tt := range []struct {
		name  string
		err   error
		after time.Duration // when it is sent
	}{
		{"server away", errAway, retryEventAfter},
		{"refused", forbidden("events", ""), refusalPause},
		{"invalid", apierrors.NewBadRequest("x"), retryEventAfter},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer()
				var failing atomic.Bool
				failing.Store(true)
				s.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
					return failing.Load(), nil, tt.err
				})
				w := leadingWriter(t, s, Options{UID: uidOf})
				w.Report(problemsOf(1))
				synctest.Wait()
				failing.Store(false)
				time.Sleep(tt.after - time.Millisecond)
				synctest.Wait()
				if got := len(s.events(t)); got != 0 {
					t.Errorf("%d Events before %v", got, tt.after)
				}
				time.Sleep(2 * time.Millisecond)
				synctest.Wait()
				if got := len(s.events(t)); got != 1 || len(w.Problems()) > 0 {
					t.Errorf("%d Events after %v, want 1; problems %v", got, tt.after, w.Problems())
				}
			})
		})
	}
}

// An object that is not cached yet gets its Event when it is.
func TestEventWaitsForTheUID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		var listed atomic.Bool
		w := leadingWriter(t, s, Options{UID: func(ref model.ObjectRef) string {
			if !listed.Load() {
				return ""
			}
			return uidOf(ref)
		}})
		w.Report(problemsOf(1))
		synctest.Wait()
		if got := len(s.events(t)); got != 0 {
			t.Errorf("%d Events on an object without uid", got)
		}
		listed.Store(true)
		time.Sleep(retryEventAfter + time.Second)
		synctest.Wait()
		if got := len(s.events(t)); got != 1 {
			t.Errorf("%d Events, want 1", got)
		}
	})
}

func TestNewEvent(t *testing.T) {
	p := model.Problem{
		Object: model.ObjectRef{Cluster: "east", Kind: "Ingress", Namespace: "shop", Name: strings.Repeat("a.", 126) + "a"},
		Field:  "spec.tls[0].secretName", Reason: model.ReasonSecretNotFound, Message: strings.Repeat("x", maxMessage-25) + "éé",
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := newEvent(p, "u", "edge-1", at)
	if e.InvolvedObject.APIVersion != "networking.k8s.io/v1" || e.Namespace != "shop" || e.Reason != "SecretNotFound" ||
		e.Type != corev1.EventTypeWarning || e.ReportingInstance != "edge-1" || e.Count != 1 || !e.LastTimestamp.Time.Equal(at) {
		t.Errorf("got %+v", e)
	}
	if want := "spec.tls[0].secretName: " + strings.Repeat("x", maxMessage-25); e.Message != want {
		t.Errorf("got a message of %d bytes, want %d, cut between characters", len(e.Message), len(want))
	}
	if errs := validation.IsDNS1123Subdomain(e.Name); len(errs) > 0 {
		t.Errorf("name %s: %v", e.Name, errs)
	}
	if again := newEvent(p, "u", "edge-2", at.Add(time.Hour)); again.Name != e.Name {
		t.Errorf("the same Problem on another edge is Event %s, want %s", again.Name, e.Name)
	}
	names := map[string]bool{e.Name: true}
	for _, o := range []model.Problem{
		{Object: p.Object, Field: "spec.tls[1].secretName", Reason: p.Reason, Message: p.Message},
		{Object: p.Object, Field: p.Field, Reason: model.ReasonSecretForbidden, Message: p.Message},
		{Object: p.Object, Field: p.Field, Reason: p.Reason, Message: "y"},
	} {
		names[eventName(o, "u")] = true
	}
	names[eventName(p, "v")] = true
	if len(names) != 5 {
		t.Errorf("5 Problems have %d names", len(names))
	}
	node := newEvent(model.Problem{Object: model.ObjectRef{Kind: "Node", Name: "n"}, Message: "m"}, "u", "edge-1", at)
	if node.Namespace != "default" || node.InvolvedObject.Namespace != "" || node.Message != "m" {
		t.Errorf("Event of an object without namespace: %+v", node)
	}
}
