package gateway

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the package's metrics. Labels are bounded: codes by their class, reasons by the answers.
type metrics struct {
	routes       prometheus.Gauge
	connections  prometheus.Gauge
	inFlight     prometheus.Gauge
	classes      [6]prometheus.Counter // by first digit of the status code; 0 for codes that are none
	errors       *prometheus.CounterVec
	dials        prometheus.Counter
	dialErrors   prometheus.Counter
	reuses       prometheus.Counter
	retries      prometheus.Counter
	acceptErrors prometheus.Counter

	upgraded       prometheus.Gauge
	handshakes     *prometheus.CounterVec
	certificateEnd *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	requests := f.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_http_requests_total", Help: "HTTP requests answered, by class of the status code."}, []string{"code"})
	connects := f.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_http_upstream_connects_total",
		Help: "Connections to endpoints that a request asked for, by result: new, reused or failed."}, []string{"result"})
	m := metrics{
		routes: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_http_routes", Help: "Routes in the table."}),
		connections: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_http_connections", Help: "Client connections that are open."}),
		inFlight: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_http_requests_in_flight", Help: "Requests that are being handled."}),
		errors: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_http_request_errors_total",
			Help: "Requests that the gateway answered itself or cut short, by reason."}, []string{"reason"}),
		dials:      connects.WithLabelValues("new"),
		dialErrors: connects.WithLabelValues("failed"),
		reuses:     connects.WithLabelValues("reused"),
		retries: f.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_http_retries_total", Help: "Requests sent again after an endpoint failed to take them."}),
		acceptErrors: f.NewCounter(prometheus.CounterOpts{
			Name: "sallyport_http_accept_errors_total", Help: "Client connections that could not be accepted."}),
		upgraded: f.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_http_upgraded_connections",
			Help: "Client connections that were upgraded, to WebSocket for one, and are open."}),
		handshakes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_gateway_tls_handshakes_total",
			Help: "TLS handshakes with clients, by result: full, resumed, or why there was none."}, []string{"result"}),
		certificateEnd: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_gateway_certificate_expiry_timestamp_seconds",
			Help: "End of the validity of the certificates that are presented, in Unix time."}, []string{"secret"}),
	}
	for _, result := range []string{handshakeFull, handshakeResumed, handshakeTimeout, handshakeNotTLS, handshakeGone,
		handshakeDistrust, handshakeRefused} {
		m.handshakes.WithLabelValues(result) // so that it is there, as 0, before the first
	}
	for i, class := range []string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"} {
		m.classes[i] = requests.WithLabelValues(class)
	}
	return m
}

func (m *metrics) countCode(code int) {
	class := code / 100
	if class < 1 || class > 5 {
		class = 0
	}
	m.classes[class].Inc()
}

func (m *metrics) countError(a *answer) { m.errors.WithLabelValues(a.reason).Inc() }

// The reasons for which a response breaks off, as labels of the error metric beside those of the answers.
const (
	reasonClient   = "client_gone"
	reasonEndpoint = "truncated"
	reasonLimit    = "stalled"
)
