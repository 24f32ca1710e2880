package stream

import (
	"maps"
	"net"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// traffic counts what a service port has carried. It has the names and labels of what the kernel dataplanes read from
// conntrack; bytes are those of the payload alone, and packets are not known.
type traffic struct {
	connections atomic.Uint64 // TCP connections relayed, and UDP sessions
	open        atomic.Int64  // of those, now
	in, out     atomic.Uint64 // bytes from clients, and to them
}

// begin counts a connection. It is paired with end.
func (t *traffic) begin() {
	t.connections.Add(1)
	t.open.Add(1)
}

func (t *traffic) end() { t.open.Add(-1) }

// A meter is how much of one direction of a relay is in its service port's bytes already.
type meter struct {
	port    *atomic.Uint64
	counted atomic.Uint64
}

// read counts what is new in the direction's total so far. Several may read at once, and totals may come out of order.
func (m *meter) read(total uint64) {
	for {
		counted := m.counted.Load()
		if total <= counted {
			return
		}
		if m.counted.CompareAndSwap(counted, total) {
			m.port.Add(total - counted)
			return
		}
	}
}

// readMeters counts the bytes that open connections have carried so far, as the kernel tells them: what is spliced passes
// through no hands of ours, and its direction may end after days only.
func (p *Proxy) readMeters() {
	p.relaysMu.Lock()
	open := slices.Collect(maps.Keys(p.relays))
	p.relaysMu.Unlock()
	for _, r := range open {
		r.in.read(received(r.client))
		r.out.read(received(r.backend))
	}
}

// received returns the payload bytes that c has received (tcpi_bytes_received: tcpEStatsAppHCThruOctetsReceived of
// RFC 4898); 0 if c is closed. The kernel counts the peer's FIN as one more byte.
func received(c *net.TCPConn) uint64 {
	info, err := tcpInfo(c)
	if err != nil || info.Bytes_received == 0 {
		return 0
	}
	switch info.State {
	case unix.BPF_TCP_TIME_WAIT, unix.BPF_TCP_CLOSE, unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING:
		return info.Bytes_received - 1
	default:
		return info.Bytes_received
	}
}

// A trafficCollector shows the traffic of all service ports that had any.
type trafficCollector struct {
	proxy                    *Proxy
	connections, open, bytes *prometheus.Desc
}

func newTrafficCollector(p *Proxy) *trafficCollector {
	labels := []string{"namespace", "service", "port", "protocol"}
	return &trafficCollector{
		proxy: p,
		connections: prometheus.NewDesc("sallyport_l4_connections_total",
			"Connections forwarded, by service port; with UDP, clients until idle.", labels, nil),
		open: prometheus.NewDesc("sallyport_l4_connections",
			"Connections open now, by service port.", labels, nil),
		bytes: prometheus.NewDesc("sallyport_l4_bytes_total",
			"Bytes forwarded, by service port: in from clients and out to them.", append(labels, "direction"), nil),
	}
}

// Describe implements prometheus.Collector.
func (c *trafficCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.open
	ch <- c.bytes
}

// A series is a service port as labels tell it: Services of one name in several clusters are not told apart.
type series struct{ namespace, service, port, protocol string }

type reading struct{ connections, open, in, out float64 }

// Collect implements prometheus.Collector.
func (c *trafficCollector) Collect(ch chan<- prometheus.Metric) {
	c.proxy.readMeters()
	for s, r := range c.proxy.states.readings() {
		labels := []string{s.namespace, s.service, s.port, s.protocol}
		ch <- prometheus.MustNewConstMetric(c.connections, prometheus.CounterValue, r.connections, labels...)
		ch <- prometheus.MustNewConstMetric(c.open, prometheus.GaugeValue, r.open, labels...)
		ch <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, r.in, append(labels, "in")...)
		ch <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, r.out, append(labels, "out")...)
	}
}

// readings sums up the traffic by series.
func (s *states) readings() map[series]reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[series]reading)
	for key, st := range s.ports {
		t := &st.traffic
		if t.connections.Load() == 0 {
			continue
		}
		at := series{key.service.Namespace, key.service.Name, key.label(), string(key.protocol)}
		sum := out[at]
		out[at] = reading{sum.connections + float64(t.connections.Load()), sum.open + float64(t.open.Load()),
			sum.in + float64(t.in.Load()), sum.out + float64(t.out.Load())}
	}
	return out
}
