package stream

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// traffic counts what a service port has carried. It has the names and labels of what the kernel dataplanes read from
// conntrack; bytes are those of the payload alone, and packets are not known.
type traffic struct {
	connections atomic.Uint64 // TCP connections relayed, and UDP sessions
	open        atomic.Int64  // of those, now
	in, out     atomic.Uint64 // bytes from clients, and to them

	ports int           // that count in it; of states
	gone  time.Duration // uptime when the last of them went
}

// afterlife is for how long the traffic of a service port is told after it is gone, as by the kernel dataplanes: long enough for
// every scrape interval, and for a Service that is made anew to go on where it was.
const afterlife = time.Hour

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
	port := []string{"cluster", "namespace", "service", "port", "protocol"}
	return &trafficCollector{
		proxy: p,
		connections: prometheus.NewDesc("sallyport_l4_connections_total",
			"Connections (UDP: clients, until idle) of a service port, since this process started.", port, nil),
		open: prometheus.NewDesc("sallyport_l4_connections",
			"Connections (UDP: clients, until idle) of a service port that are open.", port, nil),
		bytes: prometheus.NewDesc("sallyport_l4_bytes_total",
			"Payload bytes of a service port's connections, from clients (in) and to them (out).", append(port, "direction"), nil),
	}
}

// Describe implements prometheus.Collector.
func (c *trafficCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.open
	ch <- c.bytes
}

// Collect implements prometheus.Collector. It asks the kernel about each open TCP connection.
func (c *trafficCollector) Collect(ch chan<- prometheus.Metric) {
	c.proxy.readMeters()
	for s, r := range c.proxy.states.readings() {
		labels := [...]string{s.cluster, s.namespace, s.service, s.port, s.protocol, "in"}
		port, directed := labels[:5], labels[:]
		send(ch, c.connections, prometheus.CounterValue, r.connections, port)
		send(ch, c.open, prometheus.GaugeValue, uint64(r.open), port)
		send(ch, c.bytes, prometheus.CounterValue, r.in, directed)
		labels[5] = "out"
		send(ch, c.bytes, prometheus.CounterValue, r.out, directed)
	}
}

// send leaves out what cannot be a label: names are the cluster's, and one that is no UTF-8 must not cost all other metrics.
func send(ch chan<- prometheus.Metric, d *prometheus.Desc, kind prometheus.ValueType, v uint64, labels []string) {
	if m, err := prometheus.NewConstMetric(d, kind, float64(v), labels...); err == nil {
		ch <- m
	}
}

// A series is a service port as labels tell it. A port that got another number is the same.
type series struct{ cluster, namespace, service, port, protocol string }

// A reading is what traffic told at one time.
type reading struct {
	connections, in, out uint64
	open                 int64
}

func (t *traffic) read() reading {
	return reading{t.connections.Load(), t.in.Load(), t.out.Load(), t.open.Load()}
}

// readings are the traffic of all service ports that had any.
func (s *states) readings() map[series]reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[series]reading)
	for key, t := range s.traffic {
		if r := t.read(); r.connections > 0 {
			out[key] = r
		}
	}
	return out
}

// series returns the labels of the port, which are its name, or its number if it has none.
func (k portKey) series() series {
	port := k.name
	if port == "" {
		port = strconv.Itoa(int(k.number))
	}
	return series{k.service.Cluster, k.service.Namespace, k.service.Name, port, string(k.protocol)}
}
