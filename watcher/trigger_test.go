package watcher

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// drive runs a Trigger in a bubble of fake time, and returns when its runs began, counted from the start of the bubble.
func drive(t *testing.T, takes time.Duration, marks ...time.Duration) []time.Duration {
	t.Helper()
	var runs []time.Duration
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		trigger := NewTrigger(CoalesceDelay)
		ctx, cancel := context.WithCancel(t.Context())
		go trigger.Run(ctx, func(context.Context) {
			runs = append(runs, time.Since(start))
			time.Sleep(takes)
		})
		for _, at := range marks {
			time.Sleep(at - time.Since(start))
			trigger.Mark()
		}
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
	})
	return runs
}

func TestTrigger(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name  string
		takes time.Duration
		marks []time.Duration
		want  []time.Duration
	}{
		{"no change, no run", 0, nil, nil},
		{"one change runs after the delay", 0, []time.Duration{0}, []time.Duration{25 * ms}},
		{"a burst is one run", 0, []time.Duration{0, 0, 10 * ms, 24 * ms}, []time.Duration{25 * ms}},
		{"the first change starts the timer, a later one does not put it off", 0, []time.Duration{0, 20 * ms, 40 * ms, 60 * ms},
			[]time.Duration{25 * ms, 65 * ms}},
		{"changes during a run lead to one more", 100 * ms, []time.Duration{0, 30 * ms, 60 * ms, 90 * ms}, []time.Duration{25 * ms, 150 * ms}},
		{"quiet in between", 0, []time.Duration{0, 200 * ms}, []time.Duration{25 * ms, 225 * ms}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := drive(t, tt.takes, tt.marks...); !slices.Equal(got, tt.want) {
				t.Errorf("runs at %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTriggerEndsWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trigger := NewTrigger(time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		trigger.Mark()
		go trigger.Run(ctx, func(context.Context) { t.Error("ran") })
		synctest.Wait()
		cancel()
		synctest.Wait() // the bubble fails if the goroutine stays
	})
}
