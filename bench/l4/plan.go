package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"sallyport/bench/l4/api"
)

// A plan is what is measured, and how much of it.
type plan struct {
	sizes       []int // numbers of Services, ascending; the first is what connection times are compared with
	endpoints   int   // of each Service
	starts      int   // from nothing; those that take longer than slow are not repeated
	rounds      int   // of connections
	connections int   // a round and target
	changes     int   // of an endpoint, at most
	changeTime  time.Duration
	changeGap   time.Duration // between the arrival of one change and the next
	churnAt     int           // the number of Services at which changes under churn are measured, 0: nowhere
	churnTime   time.Duration // how long
	flows       int           // connections that have to survive a killed process
	// failoverFlows are those through an edge that dies; 0: none does.
	failoverFlows int
}

// slow is what a start takes that is done once only.
const slow = 30 * time.Second

// programWithin bounds one start from nothing.
const programWithin = 15 * time.Minute

// A result is what one contender did at one number of Services.
type result struct {
	contender string
	services  int
	starts    []programming
	connect   [3]sample // to the first, middle and last Service by the order of the rules
	reference sample    // to the same contender with one Service, in the same rounds
	nodePort  sample
	forwarded sample // to an address that no Service has, behind the edge
	local     sample // to the edge itself
	change    sample
	changeCPU time.Duration // of the program and its children, for one change
	churn     sample
	usage     usage
	survived  int
}

// A bench is a run of a plan.
type bench struct {
	plan
	site *site
	dir  string
	log  *slog.Logger
	// references run the first size throughout. bare is an edge without any rules.
	references map[string]*runner
	runners    map[string]*runner
	bare       *edgeHost
	results    []*result
	routing    []bareResult
	failovers  []failover
	left       []string // contenders that cannot be run, and why
}

// A bareResult is what traffic costs at an edge that runs nothing, measured beside a number of Services.
type bareResult struct {
	services         int
	forwarded, local sample
}

// edgesFor is how many edges a run of so many contenders needs: two for each, and a bare one.
func edgesFor(contenders int) int { return 2*contenders + 1 }

// newBench places the contenders on the site.
func newBench(p plan, s *site, contenders []contender, dir string, log *slog.Logger) (*bench, error) {
	b := &bench{plan: p, site: s, dir: dir, log: log, references: map[string]*runner{}, runners: map[string]*runner{}, bare: s.edges[len(s.edges)-1]}
	for i, c := range contenders {
		for k, into := range []map[string]*runner{b.references, b.runners} {
			e := s.edges[2*i+k]
			r, err := s.place(c, e, filepath.Join(dir, e.Name), log)
			if err != nil {
				return nil, err
			}
			into[c.name()] = r
		}
	}
	return b, nil
}

// run measures everything, from the smallest cluster to the largest.
func (b *bench) run(ctx context.Context, contenders []contender) error {
	first := api.NewState(b.sizes[0], b.endpoints, b.site.nodes()...)
	for _, c := range contenders {
		r := b.references[c.name()]
		if err := r.serve(first); err != nil {
			return err
		}
		if _, err := r.program(ctx); err != nil {
			return err
		}
	}
	for _, n := range b.sizes {
		if err := b.size(ctx, contenders, n); err != nil {
			return fmt.Errorf("%d services: %w", n, err)
		}
	}
	return nil
}

// size measures at one number of Services. All contenders run during the measurements of connections, and only one is
// being changed at a time.
func (b *bench) size(ctx context.Context, contenders []contender, n int) (err error) {
	contenders = slices.DeleteFunc(slices.Clone(contenders), func(c contender) bool { return c.most() > 0 && n > c.most() })
	state := api.NewState(n, b.endpoints, b.site.nodes()...)
	var results []*result
	defer func() {
		for _, c := range contenders {
			err = errors.Join(err, b.runners[c.name()].stop())
		}
	}()
	for _, c := range contenders {
		if err := b.runners[c.name()].serve(state); err != nil {
			return err
		}
		results = append(results, &result{contender: c.name(), services: n})
	}
	if err := b.startAll(ctx, results); err != nil {
		return err
	}
	if err := b.connectAll(ctx, results, n); err != nil {
		return err
	}
	for _, r := range results {
		if err := b.one(ctx, r); err != nil {
			return err
		}
	}
	b.results = append(b.results, results...)
	return nil
}

// startAll starts each contender from nothing, in turn; after the last round they run.
func (b *bench) startAll(ctx context.Context, results []*result) error {
	for round := range b.starts {
		for _, result := range results {
			r := b.runners[result.contender]
			if round > 0 {
				if result.starts[0].first > slow {
					continue
				}
				if err := r.stop(); err != nil {
					return err
				}
			}
			limit, cancel := context.WithTimeout(ctx, programWithin)
			p, err := r.program(limit)
			cancel()
			if err != nil {
				return err
			}
			b.log.Info("programmed from nothing", "contender", r.name(), "services", r.services, "took", p.first, "applied", p.applied, "cpu", p.cpu)
			result.starts = append(result.starts, p)
		}
	}
	return nil
}

// connectAll times connections to all Services' places, and to what no Service has to do with.
func (b *bench) connectAll(ctx context.Context, results []*result, n int) error {
	bare := bareResult{services: n}
	targets := []target{
		{"forwarded, no rules", b.bare, plain(b.site.node.NodesAddr)},
		{"local, no rules", b.bare, plain(b.bare.Addr)},
	}
	into := []*sample{&bare.forwarded, &bare.local}
	for _, result := range results {
		more, samples, err := b.targets(result)
		if err != nil {
			return err
		}
		targets, into = append(targets, more...), append(into, samples...)
	}
	all, err := b.site.timeRounds(ctx, targets, b.rounds, b.connections)
	if err != nil {
		return err
	}
	for i, s := range all {
		*into[i] = s
		b.log.Info("connect", "to", targets[i].name, "services", n, "p50", s.p50, "p99", s.p99)
	}
	b.routing = append(b.routing, bare)
	return nil
}

// targets are what is timed of one contender, and where the results belong.
func (b *bench) targets(result *result) ([]target, []*sample, error) {
	r, reference := b.runners[result.contender], b.references[result.contender]
	places, err := r.places(r.edge, r.services)
	if err != nil {
		return nil, nil, err
	}
	name := r.name() + ", "
	targets := []target{
		{name + "first", r.edge, vip(places[0])},
		{name + "middle", r.edge, vip(places[1])},
		{name + "last", r.edge, vip(places[2])},
		{name + "one service", reference.edge, vip(0)},
		{name + "node port", r.edge, lastNodePort(r)},
		{name + "forwarded", r.edge, plain(b.site.node.NodesAddr)},
		{name + "local", r.edge, plain(r.edge.Addr)},
	}
	c := &result.connect
	into := []*sample{&c[0], &c[1], &c[2], &result.reference, &result.nodePort, &result.forwarded, &result.local}
	return targets, into, nil
}

// one measures what needs the machine for one contender.
func (b *bench) one(ctx context.Context, result *result) error {
	r := b.runners[result.contender]
	before, err := r.process.usage()
	if err != nil {
		return err
	}
	took, err := r.changes(ctx, b.changes, b.changeTime, b.changeGap)
	if err != nil {
		return err
	}
	result.change = summarize(took)
	b.log.Info("one endpoint changed", "contender", r.name(), "services", r.services, "p50", result.change.p50, "p99", result.change.p99, "changes", result.change.n)
	if result.usage, err = r.process.usage(); err != nil {
		return err
	}
	result.changeCPU = (result.usage.cpu - before.cpu) / time.Duration(len(took)+1)
	if r.services == b.churnAt && r.services > 1 {
		if took, err = r.changesUnderChurn(ctx, b.churnTime, b.endpoints); err != nil {
			return err
		}
		result.churn = summarize(took)
		b.log.Info("one endpoint changed under churn", "contender", r.name(), "services", r.services, "p50", result.churn.p50, "p99", result.churn.p99, "changes", result.churn.n)
	}
	return b.killed(ctx, result)
}

// close stops all contenders and removes what they have left.
func (b *bench) close() error {
	var errs []error
	for _, all := range []map[string]*runner{b.references, b.runners} {
		for _, r := range all {
			errs = append(errs, r.stop())
		}
	}
	return errors.Join(errs...)
}
