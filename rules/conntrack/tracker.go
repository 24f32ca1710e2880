// Package conntrack keeps the kernel's connection tracking in step with a model.Snapshot: it deletes entries of UDP that lead
// to endpoints which are gone, counts connections, packets and bytes of each service port, and sizes the table.
//
// Nothing here costs a packet anything: the kernel counts by flow on its own (net.netfilter.nf_conntrack_acct). Flows are
// known to be Sallyport's by their connmark, and to be of a service port by the destination that their client sent to.
package conntrack

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"sallyport/watcher/model"
)

// Options are the settings of a Tracker.
type Options struct {
	// Mark is the connmark of Sallyport's connections, in the bits of MarkMask.
	Mark, MarkMask uint32
	// Max is how many entries the kernel's table is to have room for (l4.conntrackMax); 0 goes by memory and cores.
	Max uint32
	// Log takes what an operator should know; nil discards it.
	Log *slog.Logger
	// Metrics registers sallyport_conntrack_* and, as the Tracker is a Collector, sallyport_l4_*; nil leaves them unregistered.
	Metrics prometheus.Registerer
}

// A Tracker watches the connection tracking of one network namespace. Its methods may be called concurrently.
type Tracker struct {
	o       Options
	table   *table
	events  *events
	metrics metrics
	descs   descs
	vectors vectors
	index   atomic.Pointer[index] // nil before the first Reconcile
	ledger  ledger

	reconciling sync.Mutex
	swept       *index // of the last sweep; nil before the first one

	collecting sync.Mutex // held while the table is read into the ledger
	started    bool       // counting is

	measuring sync.Mutex
	level     level
}

// New opens the connection tracking of the calling thread's network namespace. From then on the ends of flows are noted; Run
// reads them. It fails if the kernel has no netlink sockets for it.
func New(o Options) (*Tracker, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ends, err := listen(o.Mark, o.MarkMask)
	if err != nil {
		return nil, err
	}
	entries, err := openTable()
	if err != nil {
		ends.close()
		return nil, err
	}
	t := &Tracker{o: o, table: entries, events: ends, metrics: newMetrics(o.Metrics), descs: newDescs(), vectors: newVectors()}
	if o.Metrics != nil {
		if err := o.Metrics.Register(t); err != nil {
			t.Close()
			return nil, fmt.Errorf("register the metrics of connection tracking: %w", err)
		}
	}
	return t, nil
}

// Close releases what New opened. It is called after Run has returned.
func (t *Tracker) Close() {
	t.events.close()
	t.table.close()
}

// Run counts flows as they end, and warns when the table gets full, until ctx ends. It fails if the kernel's notifications
// cannot be read.
func (t *Tracker) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.events.follow(ctx, t.count, t.metrics.lost.Inc) })
	g.Go(func() error {
		t.watchLevel(ctx)
		return nil
	})
	return g.Wait()
}

// count adds a flow that has ended.
func (t *Tracker) count(f *flow) {
	if x := t.index.Load(); x != nil && t.ours(f) {
		if p := x.find(destination{f.original.dst, f.original.protocol}); p != nil {
			t.ledger.count(p, f)
		}
	}
}

func (t *Tracker) ours(f *flow) bool { return f.mark&t.o.MarkMask == t.o.Mark }

// Reconcile learns the service ports of a snapshot, whose NodePorts are served at the local addresses, and deletes the
// entries of UDP that it makes stale. It is called when the snapshot's rules are in place, since what is deleted comes
// again at once. Without changes that matter the table is not read. When it fails, the next call does what was left undone.
//
// Connections of other protocols, and what is not Sallyport's, are never touched.
func (t *Tracker) Reconcile(ctx context.Context, s *model.Snapshot, local []netip.Addr) error {
	t.reconciling.Lock()
	defer t.reconciling.Unlock()
	x := t.learn(s.Services, slices.SortedFunc(slices.Values(local), netip.Addr.Compare))
	if err := t.start(); err != nil {
		return err
	}
	if x.outdated(t.swept) {
		if err := t.sweep(ctx, x); err != nil {
			return err
		}
	}
	t.swept = x
	return nil
}

// learn makes an index where the one that there is does not fit.
func (t *Tracker) learn(services []model.Service, local []netip.Addr) *index {
	x := t.index.Load()
	if x != nil && x.holds(services, local) {
		x.services = services // so that older snapshots can go
		return x
	}
	x = newIndex(services, local)
	t.index.Store(x)
	t.ledger.keep(x.ports, time.Now())
	return x
}

// start begins to count, once.
func (t *Tracker) start() error {
	t.collecting.Lock()
	defer t.collecting.Unlock()
	if t.started {
		return nil
	}
	if err := t.read(); err != nil {
		return err
	}
	t.ledger.start()
	t.started = true
	return nil
}

// read brings the ledger's live flows up to date.
func (t *Tracker) read() error {
	t.ledger.begin()
	x := t.index.Load()
	return t.table.marked(t.o.Mark, t.o.MarkMask, func(f *flow) {
		if p := x.find(destination{f.original.dst, f.original.protocol}); p != nil {
			t.ledger.see(p, f)
		}
	})
}

// sweep deletes the entries that are stale by x.
func (t *Tracker) sweep(ctx context.Context, x *index) error {
	var stale []doomed
	err := t.table.ofUDP(func(f *flow) {
		if x.stale(f, t.swept, t.ours(f)) {
			stale = append(stale, doom(f))
		}
	})
	if err != nil {
		return err
	}
	for _, d := range stale {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := t.table.delete(d); err != nil {
			return err
		}
		t.metrics.deleted.Inc()
	}
	t.o.Log.DebugContext(ctx, "stale entries of UDP deleted", "entries", len(stale))
	return nil
}
