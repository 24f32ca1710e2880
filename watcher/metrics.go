package watcher

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the package's metrics; all sources of a process share one.
type Metrics struct {
	watchErrors     *prometheus.CounterVec
	events          *prometheus.CounterVec
	up              *prometheus.GaugeVec
	contact         *prometheus.GaugeVec
	requestsFailed  *prometheus.CounterVec
	expiry          *prometheus.GaugeVec
	lastGoodWritten *prometheus.GaugeVec
	lastGoodServing *prometheus.GaugeVec
}

// NewMetrics registers the package's metrics with r, or nowhere if r is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	gauge := func(name, help string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"cluster"})
	}
	return &Metrics{
		watchErrors: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_api_watch_errors_total",
			Help: "Failures to list or watch a kind at the API server."}, []string{"kind"}),
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_watcher_events_total",
			Help: "Changes seen, by kind; Manifests are reads of a manifest folder."}, []string{"kind"}),
		requestsFailed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_api_requests_failed_total",
			Help: "Requests to the API server that failed, by HTTP status code; none: no answer."}, []string{"cluster", "code"}),
		up: gauge("sallyport_api_up",
			"1: the API server answers, and all that may be read is being watched."),
		contact: gauge("sallyport_api_last_contact_timestamp_seconds",
			"When the API server last sent something."),
		expiry: gauge("sallyport_api_credential_expiry_timestamp_seconds",
			"When the token or client certificate ends; absent if it does not say."),
		lastGoodWritten: gauge("sallyport_last_good_written_timestamp_seconds",
			"When the last-good file was written."),
		lastGoodServing: gauge("sallyport_last_good_serving",
			"1: what is served is from the last-good file, or from before the API server became another cluster's."),
	}
}

// label is the value of a cluster's label cluster: a cluster without a name is "default".
func (o Options) label() string {
	if o.Cluster == "" {
		return "default"
	}
	return o.Cluster
}

// seconds is a time as Prometheus has it.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// truth is 1 or 0.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
