package rules

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	applies *prometheus.CounterVec
	seconds prometheus.Histogram
	rules   *prometheus.GaugeVec
	drift   *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		applies: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_rules_applies_total",
			Help: "Rule sets applied to the kernel, by result (success, error). Unchanged ones are not applied.",
		}, []string{"result"}),
		seconds: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "sallyport_rules_apply_seconds",
			Help:    "Time to apply a changed rule set, all tables.",
			Buckets: prometheus.ExponentialBuckets(0.004, 2, 13), // 4 ms to 16 s
		}),
		rules: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_rules_count",
			Help: "iptables rules in Sallyport's chains, by family (IPv4, IPv6) and table.",
		}, []string{"family", "table"}),
		drift: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_rules_drift_total",
			Help: "Changes to Sallyport's rules that another program made, by family, table and kind (table, hook, chain, rules, unknown). All are written anew.",
		}, []string{"family", "table", "kind"}),
	}
}

// note takes how it went to apply the rules of all families.
func (m metrics) note(changed, ok bool, took time.Duration) {
	switch {
	case !ok:
		m.applies.WithLabelValues("error").Inc()
	case changed:
		m.applies.WithLabelValues("success").Inc()
		m.seconds.Observe(took.Seconds())
	}
}
