// Package watcher fills Objects, the inputs of translation, and says when they change.
//
// A Source is an API server (informers) or a folder of manifests; all are alike to what follows. A Source only says
// that something changed, never what: whoever listens coalesces (Trigger) and then lists all Objects anew.
package watcher

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sallyport/watcher/objects"
)

// A Source is where objects come from.
type Source interface {
	// Run keeps the objects up to date until ctx ends, then returns nil. It calls changed, from any goroutine, after
	// each change; changed must not block. An error means that the source cannot work at all.
	Run(ctx context.Context, changed func()) error
	// Objects returns what the source holds now. The objects must not be modified. ok is false until everything that
	// the source may read has been read once: what a part of the objects says must not be acted on.
	Objects() (_ objects.Cluster, ok bool)
}

// Metrics are the package's metrics; all sources of a process share one.
type Metrics struct {
	watchErrors *prometheus.CounterVec
	events      *prometheus.CounterVec
}

// NewMetrics registers the package's metrics with r, or nowhere if r is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	return &Metrics{
		watchErrors: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_api_watch_errors_total",
			Help: "Failures to list or watch a kind at the API server."}, []string{"kind"}),
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_watcher_events_total",
			Help: "Changes seen, by kind; Manifests are reads of a manifest folder."}, []string{"kind"}),
	}
}
