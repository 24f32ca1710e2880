package main

import (
	"context"
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

// retryAfter is the pause after a reconcile that failed.
const retryAfter = time.Second

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
	applied atomic.Uint64 // generation that was last reconciled without error
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
		if err != nil {
			l.results.WithLabelValues(l.name, "error").Inc()
			l.log.ErrorContext(ctx, "reconcile failed", "generation", s.Generation, "retry", retryAfter, "err", err)
			again.Reset(retryAfter)
			continue
		}
		again.Stop()
		l.results.WithLabelValues(l.name, "success").Inc()
		if l.applied.Swap(s.Generation) == 0 {
			l.log.InfoContext(ctx, "first snapshot applied", "generation", s.Generation)
		}
	}
}

// A step is a reconciler with the name that its errors carry.
type step struct {
	name string
	reconciler
}

// A sequence reconciles its steps in order and stops at the first error: what comes after rests on what came before.
type sequence []step

// Reconcile implements reconciler.
func (q sequence) Reconcile(ctx context.Context, s *model.Snapshot) error {
	for _, r := range q {
		if err := r.Reconcile(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}
