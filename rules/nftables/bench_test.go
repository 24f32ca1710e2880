package nftables

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// BenchmarkApply programs Services from nothing, and changes one endpoint.
func BenchmarkApply(b *testing.B) {
	for _, size := range []struct{ services, endpoints int }{{10_000, 5}, {30_000, 3}} {
		s := scenario.ManyServices(size.services, size.endpoints)
		p := plan.New(s, plan.IPv4, plan.Options{NodePortAddresses: edge})
		other := plan.New(oneChanged(s), plan.IPv4, plan.Options{NodePortAddresses: edge})
		name := fmt.Sprintf("%dx%d", size.services, size.endpoints)
		b.Run("render/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Render(p)
			}
		})
		b.Run("again/"+name, func(b *testing.B) {
			b.ReportAllocs()
			var r Renderer
			r.Render(p)
			for b.Loop() {
				r.Render(p)
			}
		})
		b.Run("all/"+name, func(b *testing.B) { benchmarkApply(b, nil, p) })
		b.Run("one/"+name, func(b *testing.B) { benchmarkApply(b, p, other, p) })
	}
}

// benchmarkApply applies the plans in turn; from nothing if there is none before.
func benchmarkApply(b *testing.B, before *plan.Plan, plans ...*plan.Plan) {
	netlab.In(b, netlab.Namespace(b), func() {
		d, err := New(Options{})
		if err != nil {
			b.Fatal(err)
		}
		apply := func(p *plan.Plan) {
			if _, err := d.Apply(context.Background(), p); err != nil {
				b.Fatal(err)
			}
		}
		if before != nil {
			apply(before)
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			apply(plans[i%len(plans)])
			if before == nil {
				b.StopTimer()
				if _, err := d.Remove(context.Background()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		}
	})
}

// oneChanged has another endpoint in one Service.
func oneChanged(s *model.Snapshot) *model.Snapshot {
	other := *s
	other.Services = slices.Clone(s.Services)
	svc := &other.Services[len(s.Services)/2]
	*svc = scenario.Service(svc.Ref.Name, svc.VIPs[0].String(), "TCP 80 0: 10.1.9.9:80"+scenario.Destinations(len(svc.Ports[0].Destinations)-1))
	return &other
}

// BenchmarkConnect connects by TCP to the first, middle and last of the Services.
func BenchmarkConnect(b *testing.B) {
	for _, n := range []int{1, 30_000} {
		l := newLab(b, plan.Options{})
		s := scenario.ManyServices(n, 3)
		for i := range s.Services { // ManyServices has endpoints that nobody serves
			s.Services[i].Ports[0].Destinations = scenario.Service("", "", "TCP 80 0:"+threePods).Ports[0].Destinations
		}
		netlab.In(b, l.Edge, func() {
			if _, err := l.Apply(b.Context(), plan.New(s, plan.IPv4, l.options)); err != nil {
				b.Fatal(err)
			}
		})
		netlab.In(b, l.Client, func() { netlab.Run(b, "ip", "route", "add", "198.18.0.0/15", "via", netlab.EdgeIPv4) })
		for name, i := range map[string]int{"first": 0, "middle": n / 2, "last": n - 1} {
			to := s.Services[i].VIPs[0].String() + ":80"
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				var took []time.Duration
				netlab.In(b, l.Client, func() {
					for b.Loop() {
						start := time.Now()
						conn, err := net.Dial("tcp", to)
						if err != nil {
							b.Fatal(err)
						}
						took = append(took, time.Since(start))
						conn.Close()
					}
				})
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "us-p50")
			})
		}
	}
}
