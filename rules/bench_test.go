package rules

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"sallyport/rules/iptables"
	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
)

var benchOptions = plan.Options{HashSeed: 0x5eed, NodePortAddresses: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}

func BenchmarkRender(b *testing.B) {
	for _, n := range []int{1000, 10000, 30000} {
		s := scenario.ManyServices(n, 5)
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				iptables.Render(plan.New(s, plan.IPv4, benchOptions))
			}
		})
	}
}

// BenchmarkApply writes 10,000 services of 5 endpoints from nothing, and then one changed endpoint, to the kernel.
func BenchmarkApply(b *testing.B) {
	for _, backend := range []Backend{BackendNFT, BackendLegacy} {
		for _, n := range []int{10000, 30000} {
			s := scenario.ManyServices(n, 5)
			b.Run(fmt.Sprintf("%s/services=%d/all", backend, n), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					inKernel(b, backend, func(apply func(*plan.Plan)) {
						b.StartTimer()
						apply(plan.New(s, plan.IPv4, benchOptions))
					})
				}
			})
			b.Run(fmt.Sprintf("%s/services=%d/one", backend, n), func(b *testing.B) {
				inKernel(b, backend, func(apply func(*plan.Plan)) {
					apply(plan.New(s, plan.IPv4, benchOptions))
					port := &s.Services[n/2].Ports[0]
					all := port.Destinations
					for i := 0; b.Loop(); i++ {
						port.Destinations = all[i%2:]
						apply(plan.New(s, plan.IPv4, benchOptions))
					}
				})
			})
		}
	}
}

// BenchmarkConnect opens and closes connections through the edge, to the last of so many services.
func BenchmarkConnect(b *testing.B) {
	for _, backend := range []Backend{BackendNFT, BackendLegacy} {
		for _, services := range []int{1, 1000, 30000} {
			b.Run(fmt.Sprintf("%s/services=%d", backend, services), func(b *testing.B) {
				n := newNetwork(b)
				netlab.In(b, n.Client, func() { netlab.Run(b, "ip", "route", "add", "198.18.0.0/15", "via", edgeIP) })
				for _, ip := range podIPs {
					netlab.Serve(b, n.Node, ip+":9376", ip)
				}
				s := scenario.ManyServices(services, len(podIPs))
				startKernel(b, n, Options{Backend: backend})(s)
				to := netip.AddrPortFrom(s.Services[services-1].VIPs[0], 80).String()
				netlab.In(b, n.Client, func() {
					for b.Loop() {
						conn, err := net.Dial("tcp", to)
						if err != nil {
							b.Fatal(err)
						}
						conn.(*net.TCPConn).SetLinger(0) // a reset: no TIME_WAIT that uses up the ports
						conn.Close()
					}
				})
			})
		}
	}
}

// inKernel runs f with a way to apply rules, in a new namespace.
func inKernel(b *testing.B, backend Backend, f func(apply func(*plan.Plan))) {
	b.Helper()
	netlab.In(b, netlab.Namespace(b), func() {
		k, err := NewKernel(Options{Backend: backend})
		if err != nil {
			b.Fatal(err)
		}
		defer k.Close()
		f(func(p *plan.Plan) {
			if _, err := k.rules.Apply(context.Background(), p); err != nil {
				b.Fatal(err)
			}
		})
	})
}
