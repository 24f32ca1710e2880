package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"sallyport/lb"
	"sallyport/watcher"
	"sallyport/watcher/model"
	"sallyport/watcher/objects"
	"sallyport/watcher/translate"
)

// A pipeline turns what its sources hold into snapshots and hands them to its lanes:
//
//	source -> Translate -> lb.Assign -> publish -> lanes
type pipeline struct {
	inputs   []input
	options  translate.Options
	pools    []lb.Pool
	lanes    []*lane
	trigger  *watcher.Trigger
	problems *problemBook
	metrics  pipelineMetrics
	log      *slog.Logger

	store     model.Store
	published atomic.Pointer[time.Time] // when the current snapshot was
}

type pipelineMetrics struct {
	generation prometheus.Gauge
	published  prometheus.Gauge
	objects    *prometheus.GaugeVec
	duration   prometheus.Histogram
}

func newPipelineMetrics(r prometheus.Registerer) pipelineMetrics {
	f := promauto.With(r)
	return pipelineMetrics{
		generation: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_snapshot_generation", Help: "Generation of the published snapshot, counted from the start of the process.",
		}),
		published: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_snapshot_published_timestamp_seconds", Help: "When the snapshot was published.",
		}),
		objects: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_snapshot_objects", Help: "Things in the published snapshot, by kind.",
		}, []string{"kind"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name: "sallyport_translate_seconds", Help: "Time from listing the objects to the published snapshot.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 12),
		}),
	}
}

// run follows the sources until ctx ends.
func (p *pipeline) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range p.inputs {
		g.Go(func() error { return s.Run(ctx, p.trigger.Mark) })
	}
	for _, l := range p.lanes {
		g.Go(func() error { return l.run(ctx) })
	}
	g.Go(func() error { p.trigger.Run(ctx, p.publish); return nil })
	return g.Wait()
}

// publish builds a snapshot and hands it over. Nothing is published before every source is complete: half of a cluster
// would look like the deletion of the other half.
func (p *pipeline) publish(context.Context) {
	var in objects.Objects
	for _, s := range p.inputs {
		c, ok := s.Objects()
		if !ok {
			return
		}
		in = append(in, c)
	}
	start := time.Now()
	next := assemble(in, p.options, p.pools)
	next.Generation = 1
	if last := p.store.Current(); last != nil {
		next.Generation = last.Generation + 1
	}
	p.published.Store(&start)
	p.store.Publish(next)
	for _, l := range p.lanes {
		l.in.put(next)
	}
	p.metrics.observe(next, time.Since(start))
	p.problems.set("translate", next.Problems)
	p.log.Debug("published", "generation", next.Generation, "services", len(next.Services),
		"nodes", len(next.Nodes), "routes", len(next.Routes), "problems", len(next.Problems))
}

func (m pipelineMetrics) observe(s *model.Snapshot, took time.Duration) {
	m.generation.Set(float64(s.Generation))
	m.published.SetToCurrentTime()
	m.duration.Observe(took.Seconds())
	m.objects.WithLabelValues("service").Set(float64(len(s.Services)))
	m.objects.WithLabelValues("node").Set(float64(len(s.Nodes)))
	m.objects.WithLabelValues("route").Set(float64(len(s.Routes)))
	m.objects.WithLabelValues("certificate").Set(float64(len(s.Certificates)))
}

// assemble is the pure part of the pipeline, the same for a cluster, a folder and `sallyport render`.
func assemble(in objects.Objects, o translate.Options, pools []lb.Pool) *model.Snapshot {
	s := translate.Translate(in, o)
	lb.Assign(s, pools)
	return s
}
