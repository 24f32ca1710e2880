package conntrack

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// vectors make the instruments. They are not registered: a Tracker collects from the instruments, in an order of its own.
type vectors struct {
	connections, packets, bytes *prometheus.CounterVec
	open                        *prometheus.GaugeVec
}

func newVectors() vectors {
	port := []string{"cluster", "namespace", "service", "port", "protocol"}
	return vectors{
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_l4_connections_total",
			Help: "Connections (UDP: flows) of a service port, since this process started."}, port),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sallyport_l4_connections",
			Help: "Connections (UDP: flows) of a service port that are open."}, port),
		packets: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_l4_packets_total",
			Help: "Packets of a service port's connections, from clients (in) and to them (out)."}, append(slices.Clone(port), "direction")),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_l4_bytes_total",
			Help: "Bytes of a service port's connections with IP headers, from clients (in) and to them (out)."}, append(slices.Clone(port), "direction")),
	}
}

func (v vectors) describe(ch chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Collector{v.connections, v.open, v.packets, v.bytes} {
		c.Describe(ch)
	}
}

// instruments are the metrics of one service port. They last as long as its account: to make their labels for each scrape would be
// most of its garbage.
type instruments struct {
	counters [len(tally{})]prometheus.Counter
	open     prometheus.Gauge
	shown    tally // what the counters are at
}

// instruments are made for a series; nil if it cannot be labels: names are the cluster's, and one that is no UTF-8 must not cost
// all other metrics.
func (v vectors) instruments(s series) *instruments {
	labels, in, out := s.labels(), s.labels("in"), s.labels("out")
	i := new(instruments)
	var err error
	if i.open, err = v.open.GetMetricWithLabelValues(labels...); err != nil {
		return nil
	}
	i.counters = [...]prometheus.Counter{
		connections: v.connections.WithLabelValues(labels...),
		packetsIn:   v.packets.WithLabelValues(in...),
		packetsOut:  v.packets.WithLabelValues(out...),
		bytesIn:     v.bytes.WithLabelValues(in...),
		bytesOut:    v.bytes.WithLabelValues(out...),
	}
	return i
}

// collect sends the metrics of all service ports that are read, name by name.
func (v vectors) collect(ch chan<- prometheus.Metric, all []reading) {
	for i := range all {
		r := &all[i]
		if *r.instruments == nil {
			*r.instruments = v.instruments(r.series)
		}
		if shown := *r.instruments; shown != nil {
			shown.show(r)
		}
	}
	for _, metrics := range [][]int{{connections, packetsIn, bytesIn}, {packetsOut, bytesOut}} {
		for i := range all {
			if shown := *all[i].instruments; shown != nil {
				for _, k := range metrics {
					ch <- shown.counters[k]
				}
				if metrics[0] == connections {
					ch <- shown.open
				}
			}
		}
	}
}

// forget lets go of the instruments of a series.
func (v vectors) forget(s series) {
	labels := s.labels()
	v.connections.DeleteLabelValues(labels...)
	v.open.DeleteLabelValues(labels...)
	for _, direction := range []string{"in", "out"} {
		v.packets.DeleteLabelValues(s.labels(direction)...)
		v.bytes.DeleteLabelValues(s.labels(direction)...)
	}
}

// show brings the instruments up to what is told.
func (i *instruments) show(r *reading) {
	i.open.Set(float64(r.open))
	for k, c := range i.counters {
		c.Add(float64(r.tally[k] - i.shown[k]))
	}
	i.shown = r.tally
}

func (s *series) labels(direction ...string) []string {
	return append([]string{s.cluster, s.namespace, s.service, s.port, s.protocol}, direction...)
}
