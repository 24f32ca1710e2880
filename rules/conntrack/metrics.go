package conntrack

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// measureInterval is how often Run looks at how full the table is.
const measureInterval = 10 * time.Second

type metrics struct{ lost, deleted, failed prometheus.Counter }

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		lost: f.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_conntrack_overruns_total",
			Help: "Times that the kernel had more ends of connections to tell of than could wait. They count as they were last read.",
		}),
		deleted: f.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_conntrack_stale_deleted_total",
			Help: "UDP entries deleted because they led to an endpoint that is gone.",
		}),
		failed: f.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_conntrack_read_errors_total",
			Help: "Scrapes that could not read the kernel's table, and tell what the last one did.",
		}),
	}
}

// descs are those of the table as a whole.
type descs struct{ entries, limit *prometheus.Desc }

func newDescs() descs {
	return descs{
		entries: prometheus.NewDesc("sallyport_conntrack_entries", "Entries in the kernel's connection tracking table, of whatever kind.", nil, nil),
		limit:   prometheus.NewDesc("sallyport_conntrack_max", "Entries that the table may have (net.netfilter.nf_conntrack_max). When it is full, new connections are dropped.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (t *Tracker) Describe(ch chan<- *prometheus.Desc) {
	ch <- t.descs.entries
	ch <- t.descs.limit
	t.vectors.describe(ch)
}

// Collect implements prometheus.Collector. It reads the entries of Sallyport's connections from the kernel.
func (t *Tracker) Collect(ch chan<- prometheus.Metric) {
	t.collecting.Lock()
	defer t.collecting.Unlock()
	if entries, limit, err := t.measure(context.Background()); err == nil {
		ch <- prometheus.MustNewConstMetric(t.descs.entries, prometheus.GaugeValue, float64(entries))
		ch <- prometheus.MustNewConstMetric(t.descs.limit, prometheus.GaugeValue, float64(limit))
	}
	if !t.started {
		return
	}
	if err := t.read(); err != nil {
		t.metrics.failed.Inc()
		t.o.Log.Error("connections not counted", "err", err)
	} else {
		for _, gone := range t.ledger.settle(time.Now()) {
			t.vectors.forget(gone)
		}
	}
	t.vectors.collect(ch, t.ledger.readings())
}

// Full says whether the table is nearly full: from 80 % of what it may hold until it is under 70 % again. When it is full, new
// connections are dropped.
func (t *Tracker) Full() bool {
	t.measuring.Lock()
	defer t.measuring.Unlock()
	return t.level.full
}

// measure reads how full the table is, and logs when it gets full and when it has room again.
func (t *Tracker) measure(ctx context.Context) (entries, limit uint32, err error) {
	entries, limit, err = t.table.usage()
	if err != nil {
		return 0, 0, err
	}
	t.measuring.Lock()
	defer t.measuring.Unlock()
	switch changed := t.level.set(entries, limit); {
	case changed && t.level.full:
		t.o.Log.WarnContext(ctx, "connection tracking is nearly full: when it is, new connections are dropped; raise l4.conntrackMax",
			"entries", entries, "max", limit)
	case changed:
		t.o.Log.InfoContext(ctx, "connection tracking has room again", "entries", entries, "max", limit)
	}
	return entries, limit, nil
}

// watchLevel measures until ctx ends.
func (t *Tracker) watchLevel(ctx context.Context) {
	tick := time.NewTicker(measureInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, _, err := t.measure(ctx); err != nil {
				t.o.Log.ErrorContext(ctx, "connection tracking not measured", "err", err)
			}
		}
	}
}
