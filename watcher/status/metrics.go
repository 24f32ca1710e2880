package status

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	leader prometheus.Gauge
	writes *prometheus.CounterVec
	events *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		leader: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_status_leader", Help: "1 while this edge is the one that writes status and Events.",
		}),
		writes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_status_writes_total",
			Help: "Writes of status by kind and result: success, outdated (the object has changed meanwhile), forbidden, error.",
		}, []string{"kind", "result"}),
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_events_total",
			Help: "Events sent, by result: created, renewed, unknown (the object is gone), forbidden, error.",
		}, []string{"result"}),
	}
}
