package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

// recorder notes the generations it was handed and fails while told to.
type recorder struct {
	mu   sync.Mutex
	got  []uint64
	fail int // how many calls fail
}

func (r *recorder) Reconcile(_ context.Context, s *model.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, s.Generation)
	if r.fail > 0 {
		r.fail--
		return errors.New("no")
	}
	return nil
}

// calls is how often it was called so far.
func (r *recorder) calls() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func testLane(r reconciler) *lane {
	log := slog.New(slog.DiscardHandler)
	return newLane("test", r, newProblemBook(log, prometheus.NewRegistry()), laneResults(prometheus.NewRegistry()), log)
}

func TestLaneRetriesTheLatestSnapshotUntilItIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{fail: 2}
		l := testLane(r)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.run(ctx) }()
		l.in.put(&model.Snapshot{Generation: 1})
		synctest.Wait()
		if l.applied.Load() != 0 {
			t.Error("a failed generation counts as applied")
		}
		l.in.put(&model.Snapshot{Generation: 2})
		for l.applied.Load() != 2 { // virtual time passes only when all are idle: the retry
			synctest.Wait()
			<-time.After(retryAfter)
		}
		stop()
		if err := <-done; err != nil || !slices.Equal(r.got, []uint64{1, 2, 2}) {
			t.Errorf("reconciled %v, error %v; want 1, 2 and 2 again", r.got, err)
		}
	})
}

// untilStopped is a reconciler that the end of the process cuts short.
type untilStopped struct{ began chan struct{} }

func (u untilStopped) Reconcile(ctx context.Context, _ *model.Snapshot) error {
	close(u.began)
	<-ctx.Done()
	return ctx.Err()
}

func TestLaneDoesNotCountWhatTheEndCutShort(t *testing.T) {
	u := untilStopped{make(chan struct{})}
	l := testLane(u)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.run(ctx) }()
	l.in.put(&model.Snapshot{Generation: 1})
	<-u.began
	stop()
	if err := <-done; err != nil || l.applied.Load() != 0 {
		t.Errorf("error %v, generation %d counts as applied", err, l.applied.Load())
	}
}

func TestMailboxKeepsTheLatest(t *testing.T) {
	m := newMailbox()
	m.put(&model.Snapshot{Generation: 1})
	m.put(&model.Snapshot{Generation: 2})
	if s := <-m; s.Generation != 2 || len(m) != 0 {
		t.Errorf("got generation %d with %d left, want 2 with none", s.Generation, len(m))
	}
}

func TestSequenceStopsAtTheFirstError(t *testing.T) {
	first, bad, last := &recorder{}, &recorder{fail: 1}, &recorder{}
	q := sequence{{"first", first}, {"bad", bad}, {"last", last}}
	err := q.Reconcile(t.Context(), &model.Snapshot{Generation: 1})
	if err == nil || err.Error() != "bad: no" || len(first.got) != 1 || len(last.got) != 0 {
		t.Errorf("error %v after %d first and %d last", err, len(first.got), len(last.got))
	}
}

// partly fails in part, always.
type partly struct{ recorder }

func (r *partly) Reconcile(ctx context.Context, s *model.Snapshot) error {
	return errors.Join(r.recorder.Reconcile(ctx, s), model.Partial(errors.New("one port is taken")))
}

func TestAPartThatFailsKeepsNothingElseFromBeingServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		part, last := &partly{}, &recorder{}
		l := testLane(sequence{{"part", part}, {"last", last}})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.run(ctx) }()
		l.in.put(&model.Snapshot{Generation: 1})
		synctest.Wait()
		if n := last.calls(); n != 1 || l.applied.Load() != 1 {
			t.Errorf("the next step ran %d times, applied is generation %d; want 1 and 1", n, l.applied.Load())
		}
		<-time.After(retryPartAfter)
		synctest.Wait()
		if n := part.calls(); n != 2 {
			t.Errorf("the part was tried %d times, want again after %v", n, retryPartAfter)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWakeRepeatsTheLatestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		l := testLane(r)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.run(ctx) }()
		l.wake() // nothing to do yet
		synctest.Wait()
		l.in.put(&model.Snapshot{Generation: 7})
		synctest.Wait()
		l.wake()
		l.wake() // once for both is enough, twice does no harm
		synctest.Wait()
		stop()
		if err := <-done; err != nil || len(r.got) < 2 || len(r.got) > 3 || r.got[1] != 7 {
			t.Errorf("reconciled %v, error %v", r.got, err)
		}
	})
}
