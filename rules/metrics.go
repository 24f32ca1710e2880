package rules

import (
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
			Help: "iptables rules in Sallyport's chains, by table.",
		}, []string{"table"}),
		drift: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_rules_drift_total",
			Help: "Changes to Sallyport's rules that another program made, by table and kind (table, hook, chain, rules, unknown). All are written anew.",
		}, []string{"table", "kind"}),
	}
}
