package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

// A reconciler makes one part of the world match a snapshot. It is handed the whole desired state, never a difference,
// and is idempotent.
type reconciler interface {
	Reconcile(ctx context.Context, s *model.Snapshot) error
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
	log     *slog.Logger
	results *prometheus.CounterVec
	applied atomic.Uint64 // generation that was last reconciled, in whole or but for a part
	said    string        // the error that was logged last
}

// run drives the lane until ctx ends.
func (l *lane) run(ctx context.Context) error {
	again := time.NewTimer(0)
	again.Stop()
	var s *model.Snapshot
	for {
		select {
		case <-ctx.Done():
			return nil
		case s = <-l.in:
		case <-again.C:
		}
		err := l.r.Reconcile(ctx, s)
		if ctx.Err() != nil {
			return nil // it may have been cut short: neither a success nor a failure
		}
		if retry := l.judge(ctx, s, err); retry > 0 {
			again.Reset(retry)
		} else {
			again.Stop()
		}
	}
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
	}
	l.tell(ctx, s, err, retry)
	return retry
}

// tell logs an error when it is not the one that was logged last.
func (l *lane) tell(ctx context.Context, s *model.Snapshot, err error, retry time.Duration) {
	text := ""
	if err != nil {
		text = err.Error()
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
