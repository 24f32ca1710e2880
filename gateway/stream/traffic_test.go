package stream

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

// traffic gathers the sallyport_l4_* metrics, as "name label label ...: value" without the namespace.
func (e edge) traffic(t *testing.T) []string {
	t.Helper()
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		name, ours := strings.CutPrefix(f.GetName(), "sallyport_l4_")
		if !ours {
			continue
		}
		for _, m := range f.Metric {
			labels := map[string]string{}
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", name, labels["service"], labels["port"], labels["protocol"],
				labels["direction"]))+fmt.Sprintf(": %v", m.GetCounter().GetValue()+m.GetGauge().GetValue()))
		}
	}
	slices.Sort(out)
	return out
}

func TestTrafficByServicePort(t *testing.T) {
	e := newEdge(t, Options{})
	web, dns := service("web", model.TCP, 30001, tcpEcho(t, "a")), service("dns", model.UDP, 30053, udpEcho(t, "b"))
	web.Ports[0].Name = "http"
	e.mustReconcile(t, web, dns, service("unused", model.TCP, 30002, unused()))
	if got := e.traffic(t); len(got) != 0 {
		t.Errorf("before any traffic: %q, want none", got)
	}
	c := dial(t, e.at(30001))
	c.line(t)     // 2 bytes
	c.mustEcho(t) // 6 bytes each way
	ask(t, udpDial(t, e.at(30053)), "?")
	udp := []string{"bytes_total dns 8080 UDP in: 1", "bytes_total dns 8080 UDP out: 3", "connections dns 8080 UDP: 1", "connections_total dns 8080 UDP: 1"}
	eventually(t, "the datagrams are counted, which comes after they are sent", func() bool {
		got := e.traffic(t)
		return slices.Contains(got, udp[0]) && slices.Contains(got, udp[1])
	})
	for _, tt := range []struct {
		name string
		do   func()
		web  []string
	}{
		{"while open", func() {}, []string{"bytes_total web http TCP in: 6", "bytes_total web http TCP out: 8", "connections web http TCP: 1"}},
		{"more while open", func() { c.mustEcho(t) },
			[]string{"bytes_total web http TCP in: 12", "bytes_total web http TCP out: 14", "connections web http TCP: 1"}},
		{"client ended", func() {
			c.CloseWrite()
			io.ReadAll(c.r)
			eventually(t, "the connection has ended", func() bool { return e.value(t, "sallyport_l4_connections") == 1 })
		}, []string{"bytes_total web http TCP in: 12", "bytes_total web http TCP out: 14", "connections web http TCP: 0"}},
	} {
		tt.do()
		want := slices.Sorted(slices.Values(slices.Concat(udp, tt.web, []string{"connections_total web http TCP: 1"})))
		if got := e.traffic(t); !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", tt.name, got, want)
		}
	}
}

// A port that got another number is one series with what is left of the old one.
func TestTrafficOfAPortThatGetsAnotherNumber(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	svc.Ports[0].Name = "http"
	e.mustReconcile(t, svc)
	old := dial(t, e.at(30001))
	old.line(t)
	svc.Ports[0].Port = servicePort + 1
	e.mustReconcile(t, svc)
	other := dial(t, e.at(30001))
	other.line(t)
	const both = "connections_total web http TCP: 2"
	if got := e.traffic(t); !slices.Contains(got, both) {
		t.Errorf("traffic = %q, want both connections in one", got)
	}
	e.mustReconcile(t)
	old.Close()
	other.Close()
	now := e.uptime()
	eventually(t, "the connections have ended", func() bool { e.sweep(now); return len(e.states.ports) == 0 })
	if got := e.traffic(t); !slices.Contains(got, both) {
		t.Errorf("traffic = %q of a Service that is gone, want what it was", got)
	}
	e.mustReconcile(t, svc)
	if got := e.traffic(t); !slices.Contains(got, both) {
		t.Errorf("traffic = %q of a Service that was made anew, want what it was", got)
	}
	e.mustReconcile(t)
	e.sweep(now)
	e.sweep(now + afterlife + 1)
	if got := e.traffic(t); len(got) != 0 {
		t.Errorf("traffic = %q of a Service long gone, want none", got)
	}
}

// A FIN is no byte, though the kernel counts it as one.
func TestReceivedIsPayload(t *testing.T) {
	a, b := tcpPair(t)
	if n := received(b); n != 0 {
		t.Errorf("at first: %d bytes, want 0", n)
	}
	io.WriteString(a, "hello")
	eventually(t, "5 bytes are there", func() bool { return received(b) == 5 })
	a.CloseWrite()
	io.ReadAll(b)
	if n := received(b); n != 5 {
		t.Errorf("after the end: %d bytes, want 5", n)
	}
	b.Close()
	if n := received(b); n != 0 {
		t.Errorf("of a closed connection: %d bytes, want 0", n)
	}
}

func TestMeterNeverGoesBack(t *testing.T) {
	tr := new(traffic)
	m := meter{port: &tr.in}
	for _, step := range []struct{ total, want uint64 }{{5, 5}, {3, 5}, {5, 5}, {9, 9}} {
		m.read(step.total)
		if got := tr.in.Load(); got != step.want {
			t.Errorf("read(%d) = %d, want %d", step.total, got, step.want)
		}
	}
}

// BenchmarkCollect has open connections, which the kernel is asked about, and service ports with traffic.
func BenchmarkCollect(b *testing.B) {
	e := newEdge(b, Options{})
	const connections, ports = 500, 10_000
	e.mustReconcile(b, service("web", model.TCP, 30001, tcpEcho(b, "a")))
	for range connections {
		dial(b, e.at(30001)).line(b)
	}
	for i := range ports {
		svc := service(fmt.Sprintf("service-%d", i), model.TCP, 0)
		e.states.port(&svc, &svc.Ports[0]).traffic.begin()
	}
	collector, out := newTrafficCollector(e.Proxy), make(chan prometheus.Metric, 4*(ports+1))
	b.ReportAllocs()
	for b.Loop() {
		collector.Collect(out)
		for len(out) > 0 {
			<-out
		}
	}
}
