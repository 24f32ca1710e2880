package lb

import (
	"fmt"
	"net/netip"
	"testing"

	"sallyport/watcher/model"
)

// BenchmarkAssign is what each reconcile costs at 10,000 Services, with VIPs alone and with ClusterIPs as well.
func BenchmarkAssign(b *testing.B) {
	pools := []Pool{{Name: "all", Ranges: []Range{{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.255.255.255")}}}}
	for _, clusterIPs := range []bool{false, true} {
		var s model.Snapshot
		for i := range 10_000 {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			svc := model.Service{Ref: model.ObjectRef{Kind: "Service", Namespace: "shop", Name: fmt.Sprintf("s%05d", i)}, Created: day(1 + i*7919%28),
				LoadBalancer: true, RequestedVIPs: []netip.Addr{addr}, RequestField: field, Ports: []model.ServicePort{{Port: 80, Protocol: model.TCP}}}
			if clusterIPs {
				svc.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)})}
			}
			s.Services = append(s.Services, svc)
		}
		b.Run(fmt.Sprintf("clusterIPs=%v", clusterIPs), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Assign(&s, pools)
			}
			if len(s.Problems) > 0 || len(s.Services[9999].VIPs) != 1 {
				b.Fatal(s.Problems)
			}
		})
	}
}
