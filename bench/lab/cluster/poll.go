package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollEvery is how often a condition is looked at. None of them costs more than one request.
const pollEvery = 25 * time.Millisecond

// within gives f a context that ends after limit.
func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready after %v", limit))
	defer stop()
	return f(ctx)
}

// poll calls cond until it returns nil. When ctx ends first, the error is cond's last one and why ctx ended.
func poll(ctx context.Context, cond func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
