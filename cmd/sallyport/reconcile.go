package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sallyport/watcher/model"
)

// A reconciler makes one part of the world match a snapshot. It is handed the whole desired state, never a difference,
// and is idempotent.
type reconciler interface {
	Reconcile(ctx context.Context, s *model.Snapshot) error
}

// A reporter is a reconciler that finds Problems which translation cannot see.
type reporter interface {
	// Problems are those of the last Reconcile.
	Problems() []model.Problem
}

// problemsOf asks r, if it finds any.
func problemsOf(r reconciler) []model.Problem {
	if found, ok := r.(reporter); ok {
		return found.Problems()
	}
	return nil
}

// The pauses after a reconcile that failed, and after one that failed in part: what is then missing, such as a port that
// another program has, seldom comes soon.
const (
	retryAfter     = time.Second
	retryPartAfter = 10 * time.Second
)

// A mailbox hands over the latest snapshot: one that was not yet taken is replaced.
type mailbox chan *model.Snapshot

func newMailbox() mailbox { return make(mailbox, 1) }

// put never blocks. There is one writer.
func (m mailbox) put(s *model.Snapshot) {
	select {
	case <-m:
	default:
	}
	m <- s
}

// A lane drives one reconciler: with every new snapshot, and with the latest one again while it fails.
type lane struct {
	name    string
	r       reconciler
	in      mailbox
	again   chan struct{} // asks for the latest snapshot once more, see wake
	log     *slog.Logger
	results *prometheus.CounterVec
	book    *problemBook

	applied atomic.Uint64          // generation that was last reconciled, in whole or but for a part
	first   chan struct{}          // closed when one was
	failure atomic.Pointer[string] // why the last reconcile failed; nil if it did not
	since   atomic.Int64           // when the reconcile that is under way began, in Unix nanoseconds; 0 if none is
	said    string                 // the error that was logged last
}

func newLane(name string, r reconciler, book *problemBook, results *prometheus.CounterVec, log *slog.Logger) *lane {
	return &lane{name: name, r: r, in: newMailbox(), again: make(chan struct{}, 1), log: log.With("part", name), results: results, book: book, first: make(chan struct{})}
}

// wake has the latest snapshot reconciled again, because something else has changed. It does not block.
func (l *lane) wake() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// laneResults is the metric that the lanes share.
func laneResults(r prometheus.Registerer) *prometheus.CounterVec {
	return promauto.With(r).NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_reconciles_total", Help: "Reconciliations of a snapshot, by lane and result.",
	}, []string{"lane", "result"})
}

// run drives the lane until ctx ends.
func (l *lane) run(ctx context.Context) error {
	retry := time.NewTimer(0)
	retry.Stop()
	var s *model.Snapshot
	for {
		select {
		case <-ctx.Done():
			return nil
		case s = <-l.in:
		case <-retry.C:
		case <-l.again:
		}
		if s == nil { // woken before the first
			continue
		}
		l.since.Store(time.Now().UnixNano())
		err := l.r.Reconcile(ctx, s)
		l.since.Store(0)
		if ctx.Err() != nil {
			return nil // it may have been cut short: neither a success nor a failure
		}
		l.book.set(l.name, problemsOf(l.r))
		if after := l.judge(ctx, s, err); after > 0 {
			retry.Reset(after)
		} else {
			retry.Stop()
		}
	}
}

// stuck says for how long the reconcile that is under way has been so; 0 if none is.
func (l *lane) stuck() time.Duration {
	since := l.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// judge counts and logs how the reconcile of s ended, and says after what time to repeat it; 0 is not at all.
func (l *lane) judge(ctx context.Context, s *model.Snapshot, err error) (retry time.Duration) {
	result := "success"
	if err != nil {
		result, retry = "error", retryAfter
	}
	if _, ok := errors.AsType[*model.PartialError](err); ok {
		result, retry = "partial", retryPartAfter
	}
	l.results.WithLabelValues(l.name, result).Inc()
	if result != "error" && l.applied.Swap(s.Generation) == 0 {
		l.log.InfoContext(ctx, "first snapshot applied", "generation", s.Generation)
		close(l.first)
	}
	l.tell(ctx, s, err, retry)
	return retry
}

// tell logs an error when it is not the one that was logged last.
func (l *lane) tell(ctx context.Context, s *model.Snapshot, err error, retry time.Duration) {
	text := ""
	l.failure.Store(nil)
	if err != nil {
		text = err.Error()
		l.failure.Store(&text)
	}
	if text != l.said && err != nil {
		l.log.ErrorContext(ctx, "reconcile failed", "generation", s.Generation, "retry", retry, "err", err)
	}
	l.said = text
}

// A step is a reconciler with the name that its errors carry.
type step struct {
	name string
	reconciler
}

// A sequence reconciles its steps in order and stops at the first that fails: what comes after rests on what came before.
// It goes on after one that failed in part: one Service must not keep the others from being served.
type sequence []step

// Reconcile implements reconciler.
func (q sequence) Reconcile(ctx context.Context, s *model.Snapshot) error {
	var parts []error
	for _, r := range q {
		err := r.Reconcile(ctx, s)
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s: %w", r.name, err)
		if _, ok := errors.AsType[*model.PartialError](err); !ok {
			return err
		}
		parts = append(parts, err)
	}
	return model.Partial(errors.Join(parts...))
}

// Problems implements reporter.
func (q sequence) Problems() (all []model.Problem) {
	for _, r := range q {
		all = append(all, problemsOf(r.reconciler)...)
	}
	return all
}
