package status

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"sallyport/watcher/model"
)

func TestLeaseThatIsRefusedIsAProblem(t *testing.T) {
	for _, tt := range []struct {
		verb string
		err  error
	}{
		{"get", forbidden("leases", LeaseName)},
		{"create", forbidden("leases", "")},
		{"create", apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "sallyport")},
	} {
		t.Run(tt.verb+" "+string(apierrors.ReasonForError(tt.err)), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer()
				var refused atomic.Bool
				refused.Store(true)
				s.PrependReactor(tt.verb, "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
					return refused.Load(), nil, tt.err
				})
				w := newWriter(Options{Cluster: "east", Identity: "edge-1", LeaseNamespace: "sallyport", Log: testLog(t)}, s)
				run(t, w)
				synctest.Wait()
				got := w.Problems()
				if len(got) != 1 || got[0].Field != "leases" || got[0].Object != (model.ObjectRef{Kind: "Cluster", Name: "east"}) {
					t.Errorf("got problems %v", got)
				}
				refused.Store(false)
				time.Sleep(3 * retryPeriod) // in the bubble's time
				synctest.Wait()
				if w.leading() == nil || len(w.Problems()) > 0 || w.Leader() != w.identity {
					t.Errorf("when it is permitted: leader %q, problems %v", w.Leader(), w.Problems())
				}
			})
		})
	}
}

// The Lease can be read and not be written: that is one Problem as long as it lasts, and one line in the log.
func TestLeaseThatCannotBeUpdated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.lease = &coordinationv1.Lease{} // which nobody holds
		var refused atomic.Bool
		refused.Store(true)
		s.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return refused.Load(), nil, forbidden("leases", LeaseName)
		})
		var changes atomic.Int32
		var log bytes.Buffer
		w := newWriter(Options{Identity: "edge-1", LeaseNamespace: "sallyport", Changed: func() { changes.Add(1) },
			Log: slog.New(slog.NewTextHandler(&log, nil))}, s)
		run(t, w)
		time.Sleep(time.Minute) // in the bubble's time
		synctest.Wait()
		if got := w.Problems(); len(got) != 1 || changes.Load() != 1 || strings.Count(log.String(), "cannot be had") != 1 {
			t.Errorf("after a minute: problems %v, changed %d times, log\n%s", got, changes.Load(), log.String())
		}
		refused.Store(false)
		time.Sleep(3 * retryPeriod)
		synctest.Wait()
		if w.leading() == nil || len(w.Problems()) > 0 {
			t.Errorf("when it is permitted: leader %q, problems %v", w.Leader(), w.Problems())
		}
	})
}

func TestLeaderIsCountedAndReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, registry := newServer(), prometheus.NewRegistry()
		w := newWriter(Options{Identity: "edge-1", LeaseNamespace: "sallyport", Log: testLog(t), Metrics: registry}, s)
		stop := run(t, w)
		synctest.Wait()
		if got := testutil.ToFloat64(w.metrics.leader); got != 1 {
			t.Errorf("sallyport_status_leader is %v, want 1", got)
		}
		stop()
		if got := testutil.ToFloat64(w.metrics.leader); got != 0 || w.Leader() != "" || *s.lease.Spec.HolderIdentity != "" {
			t.Errorf("after the end sallyport_status_leader is %v, the Lease held by %q", got, w.Leader())
		}
	})
}

// An API server that does not answer must not hold up the end.
func TestStopWhileTheServerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &hangingServer{}
		w, err := New(Options{Config: &rest.Config{Host: "http://api", Transport: server}, Identity: "edge-1", LeaseNamespace: "sallyport", Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, w)
		synctest.Wait()
		if w.leading() == nil {
			t.Fatal("does not lead")
		}
		server.hangs.Store(true)
		begin := time.Now()
		stop()
		if took := time.Since(begin); took > 2*releaseTimeout {
			t.Errorf("the end took %v, want at most %v", took, 2*releaseTimeout)
		}
	})
}

// A hangingServer knows no Lease, takes every one that is made, and then hangs when it is told to.
type hangingServer struct{ hangs atomic.Bool }

// RoundTrip implements http.RoundTripper.
func (s *hangingServer) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.hangs.Load() {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	}
	status, body := http.StatusCreated, r.Body
	if r.Method == http.MethodGet {
		status, body = http.StatusNotFound, io.NopCloser(strings.NewReader(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`))
	}
	return &http.Response{StatusCode: status, Body: body, Request: r, Header: http.Header{"Content-Type": r.Header["Content-Type"]}}, nil
}
