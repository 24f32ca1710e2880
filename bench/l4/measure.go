package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"sallyport/bench/l4/api"
)

// A programming is how one start from nothing went.
type programming struct {
	first   time.Duration // from the start of the process until the first, the middle and the last Service answer
	applied time.Duration // what of it the program says that it spent on the kernel
	cpu     time.Duration // of the process and its children, until then
}

// program starts the program and waits until Services are answered.
func (r *runner) program(ctx context.Context) (programming, error) {
	if err := r.start(); err != nil {
		return programming{}, err
	}
	at, err := r.awaitAll(ctx)
	if err != nil {
		return programming{}, err
	}
	p := programming{first: at.Sub(r.process.started)}
	for p.applied == 0 { // counted a moment after the kernel has them
		m, err := readMetrics(r.edge.Host, r.metrics())
		if err == nil {
			p.applied = r.applied(m)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return p, fmt.Errorf("%s: read its metrics: %w", r.name(), err)
		}
	}
	u, err := r.process.usage()
	p.cpu = u.cpu
	// Connections that were tried too early are remembered as going nowhere; one that has the port of such a one would
	// be refused.
	return p, errors.Join(err, run(r.edge.Host, "conntrack", "-F"))
}

// pause waits, or fails when ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// A target is what connections are timed to.
type target struct {
	name string
	edge *edgeHost
	to   netip.AddrPort
}

// timeRounds times connections to all targets in turn, so that what disturbs the machine disturbs all alike, and
// returns the medians of the rounds, in the order of the targets.
func (s *site) timeRounds(ctx context.Context, targets []target, rounds, connections int) ([]sample, error) {
	all := make([][]sample, len(targets))
	for range rounds {
		for i, t := range targets {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			took, err := s.timeConnects(t.edge, t.to, connections)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			all[i] = append(all[i], summarize(took))
		}
	}
	out := make([]sample, len(targets))
	for i := range all {
		out[i] = medianOf(all[i])
	}
	return out, nil
}

// Bounds of one measurement of changes.
const (
	// changeGapUnderChurn is the time between the arrival of one change and the next while others are made all the time.
	changeGapUnderChurn = 250 * time.Millisecond
	// churnEvery is the time between two changes of other Services under churn.
	churnEvery = time.Second / 20
	// changeWithin is how long one change may take to arrive.
	changeWithin = 2 * time.Minute
)

// spare is the first of the endpoints that no Service has at the start: changes are to these.
const spare = 600_000

// changes changes the endpoint of the last Service again and again, until there are as many values as wanted or the time
// is over, and times each from the API server's event to the first connection that reaches the new endpoint.
func (r *runner) changes(ctx context.Context, want int, atMost, gap time.Duration) ([]time.Duration, error) {
	var took []time.Duration
	var end time.Time
	last, within := r.services-1, programWithin // the first may have to wait for what is still being done since the start
	for i := range want + 1 {
		to := api.Endpoints(spare+i%2, 1)
		start := r.server.SetEndpoints(api.Slice(last, to))
		limit, cancel := context.WithTimeout(ctx, within)
		at, err := r.await(limit, vip(last), func(a netip.Addr) bool { return a == to[0] })
		cancel()
		if err != nil {
			return nil, fmt.Errorf("change %d: %w", i, err)
		}
		if i > 0 {
			took = append(took, at.Sub(start))
		} else { // which takes the Service from several endpoints to one, and does not count
			end, within = time.Now().Add(atMost), changeWithin
			r.log.Info("changes are followed", "contender", r.name(), "services", r.services, "after", at.Sub(start))
		}
		if len(took) > 0 && time.Now().After(end) {
			break
		}
		// A little chance keeps the changes out of step with whatever the program does at intervals.
		if err := pause(ctx, gap+rand.N(gap/4)); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// churn changes one endpoint of one Service after the other, 20 a second, until ctx ends. The last Service is left alone.
func (r *runner) churn(ctx context.Context, endpoints int) {
	tick := time.NewTicker(churnEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		i := rand.N(r.services - 1)
		set := slices.Concat(api.Endpoints(i*endpoints, endpoints)[1:], api.Endpoints(spare+2+n, 1))
		r.server.SetEndpoints(api.Slice(i, set))
	}
}

// changesUnderChurn is changes while 20 endpoints a second change elsewhere.
func (r *runner) changesUnderChurn(ctx context.Context, atMost time.Duration, endpoints int) ([]time.Duration, error) {
	churning, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.churn(churning, endpoints)
	}()
	defer func() {
		stop()
		<-ended
	}()
	return r.changes(ctx, 1000, atMost, changeGapUnderChurn)
}
