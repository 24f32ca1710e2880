package stream

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are what the proxy counts. The counters of the data path are looked up once, here.
type metrics struct {
	listeners *prometheus.GaugeVec
	unbound   prometheus.Gauge

	relayed, unreachable prometheus.Counter
	connections          prometheus.Gauge
	dialFailures         prometheus.Counter
	tcpIn, tcpOut        prometheus.Counter

	sessions      prometheus.Gauge
	sessionsTotal prometheus.Counter
	udpIn, udpOut prometheus.Counter
	denied        map[denial]prometheus.Counter
	// Datagrams dropped because MaxUDPSessions clients are remembered, because no socket to any destination could be
	// made, or because the destination, or the client for a reply, could not be sent to.
	dropTableFull, dropUnreachable, dropSend prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	bytes := f.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_stream_bytes_total",
		Help: "Payload bytes forwarded, in from clients and out to them; those of a TCP connection when the direction ends.",
	}, []string{"protocol", "direction"})
	dropped := f.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_stream_dropped_datagrams_total",
		Help: "UDP datagrams not forwarded, by reason: table_full, unreachable or send.",
	}, []string{"reason"})
	accepted := f.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_stream_accepted_total",
		Help: "TCP connections accepted, by result: relayed, or unreachable where no destination took it.",
	}, []string{"result"})
	return metrics{
		listeners: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_stream_listeners", Help: "Sockets that service ports are listened on by."}, []string{"protocol"}),
		unbound: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_stream_unbound_listeners", Help: "Listeners that the latest snapshot asked for and that could not be opened."}),
		relayed:     accepted.WithLabelValues("relayed"),
		unreachable: accepted.WithLabelValues("unreachable"),
		connections: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_stream_connections", Help: "TCP connections being forwarded."}),
		dialFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_stream_dial_failures_total", Help: "Failed tries to connect to a destination by TCP."}),
		sessions: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_stream_udp_sessions", Help: "UDP clients remembered."}),
		sessionsTotal: f.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_stream_udp_sessions_total", Help: "UDP clients seen, again after each idle timeout."}),
		tcpIn:  bytes.WithLabelValues("TCP", "in"),
		tcpOut: bytes.WithLabelValues("TCP", "out"),
		udpIn:  bytes.WithLabelValues("UDP", "in"),
		udpOut: bytes.WithLabelValues("UDP", "out"),

		denied: denials(f),

		dropTableFull:   dropped.WithLabelValues("table_full"),
		dropUnreachable: dropped.WithLabelValues("unreachable"),
		dropSend:        dropped.WithLabelValues("send"),
	}
}

// denials makes a counter for each denial.
func denials(f promauto.Factory) map[denial]prometheus.Counter {
	vec := f.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_stream_denied_total",
		Help: "TCP connections reset and UDP datagrams dropped because of their Service's source ranges or limits, by reason.",
	}, []string{"reason"})
	out := make(map[denial]prometheus.Counter)
	for _, why := range []denial{denySource, denyRate, denyPerClient, denyTotal, denyFull} {
		out[why] = vec.WithLabelValues(string(why))
	}
	return out
}

// deny counts a client that is not served.
func (m *metrics) deny(why denial) { m.denied[why].Inc() }
