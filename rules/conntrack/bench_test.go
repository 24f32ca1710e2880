package conntrack

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// tenThousand is a cluster of 10,000 Services with 5 endpoints each; one in so many is of UDP.
func tenThousand(udp int) []model.Service {
	s := scenario.ManyServices(10_000, 5).Services
	for i := range s {
		s[i].Ports[0].NodePort = uint16(30_000 + i)
		if i%udp == 0 {
			s[i].Ports[0].Protocol = model.UDP
		}
	}
	return s
}

// BenchmarkLearn is what a reconcile costs where something changed.
func BenchmarkLearn(b *testing.B) {
	services := tenThousand(10)
	swept := newIndex(services, edge)
	for b.Loop() {
		if newIndex(services, edge).outdated(swept) {
			b.Fatal("nothing changed")
		}
	}
}

// BenchmarkHolds is what a reconcile costs where only endpoints of TCP changed.
func BenchmarkHolds(b *testing.B) {
	services := tenThousand(10)
	x := newIndex(services, edge)
	for b.Loop() {
		if !x.holds(services, edge) {
			b.Fatal("nothing changed")
		}
	}
}

// BenchmarkCount is what the end of a flow costs.
func BenchmarkCount(b *testing.B) {
	tr := &Tracker{o: Options{Mark: 0x53000000, MarkMask: 0xff000000}}
	tr.index.Store(newIndex(tenThousand(10), edge))
	ends := make([][]byte, 10_000)
	for i := range ends {
		f := flowOf(unix.IPPROTO_TCP, fmt.Sprintf("198.18.%d.%d:80", i/256, i%256), "10.1.0.2:80")
		f.mark = 0x53000000
		ends[i] = message(f)
	}
	var f flow
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.decode(ends[i%len(ends)])
		tr.count(&f)
	}
}

// BenchmarkScrape reads 100,000 flows of 10,000 service ports, and BenchmarkScrapeOthers as many that are not Sallyport's.
func BenchmarkScrape(b *testing.B)       { benchmarkScrape(b, 0x53000000) }
func BenchmarkScrapeOthers(b *testing.B) { benchmarkScrape(b, 0) }

func benchmarkScrape(b *testing.B, mark uint32) {
	n := newNetwork(b)
	registry := prometheus.NewRegistry()
	tr := newTracker(b, n, registry)
	reconcile(b, tr, tenThousand(1)...)
	n.make(b, 100_000, mark, func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i % 10_000 >> 8), byte(i % 10_000)}), 80)
	})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(tr.ledger.accounts)), "series")
}

// BenchmarkSweep looks through 100,000 flows of UDP for those that are stale.
func BenchmarkSweep(b *testing.B) {
	n := newNetwork(b)
	tr := newTracker(b, n, nil)
	n.make(b, 100_000, 0x53000000, nil)
	services := append(tenThousand(10), dns("UDP", 0))
	x := newIndex(services, edge)
	b.ReportAllocs()
	for b.Loop() {
		if err := tr.sweep(b.Context(), x); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDelete deletes stale flows.
func BenchmarkDelete(b *testing.B) {
	n := newNetwork(b)
	tr := newTracker(b, n, nil)
	n.make(b, b.N, 0x53000000, nil)
	b.ResetTimer()
	if err := tr.sweep(b.Context(), newIndex([]model.Service{dns("UDP")}, edge)); err != nil {
		b.Fatal(err)
	}
}
