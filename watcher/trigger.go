package watcher

import (
	"context"
	"time"
)

// CoalesceDelay is how long a Trigger collects changes before it runs: short beside what a person or a rollout notices,
// long enough for the burst that one change of a Deployment makes.
const CoalesceDelay = 25 * time.Millisecond

// A Trigger turns bursts of changes into single runs. The first change starts a fixed timer, so that a steady stream of
// changes cannot put off the run; those that come meanwhile are covered by it.
type Trigger struct {
	marked chan struct{} // of capacity 1: full means that a run is due
	delay  time.Duration
}

// NewTrigger returns a Trigger that runs delay after the first change.
func NewTrigger(delay time.Duration) *Trigger {
	return &Trigger{marked: make(chan struct{}, 1), delay: delay}
}

// Mark says that something changed. It never blocks, and may be called from any goroutine.
func (t *Trigger) Mark() {
	select {
	case t.marked <- struct{}{}:
	default:
	}
}

// Run calls fn after changes, one call at a time, until ctx ends. A change that is marked while fn runs leads to
// another call, because fn may have looked too early.
func (t *Trigger) Run(ctx context.Context, fn func(context.Context)) {
	timer := time.NewTimer(t.delay)
	timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.marked:
		}
		timer.Reset(t.delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		select {
		case <-t.marked: // marked during the delay: this run covers it
		default:
		}
		fn(ctx)
	}
}
