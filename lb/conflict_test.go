package lb

import (
	"net/netip"
	"testing"

	"sallyport/watcher/model"
)

func TestPortsOfOneAddressGoToTheOlderService(t *testing.T) {
	tcp, udp := model.ServicePort{Port: 80, Protocol: model.TCP}, model.ServicePort{Port: 80, Protocol: model.UDP}
	with := func(s model.Service, external, cluster string, ports ...model.ServicePort) model.Service {
		s.Ports = ports
		if external != "" {
			s.ExternalIPs = []netip.Addr{netip.MustParseAddr(external)}
		}
		if cluster != "" {
			s.ClusterIPs = []netip.Addr{netip.MustParseAddr(cluster)}
		}
		return s
	}
	older, younger := service("older", 1, ""), service("younger", 2, "")
	older.LoadBalancer, younger.LoadBalancer = false, false
	const vip = "192.0.2.10"
	for _, tt := range []struct {
		name     string
		services []model.Service
		want     string
	}{
		{"different addresses", []model.Service{with(older, "198.51.100.1", "", tcp), with(younger, "198.51.100.2", "", tcp)}, ""},
		{"different protocols", []model.Service{with(older, "198.51.100.1", "", tcp), with(younger, "198.51.100.1", "", udp)}, ""},
		{"two external addresses", []model.Service{with(older, "198.51.100.1", "", tcp), with(younger, "198.51.100.1", "", tcp, udp)},
			"Service shop/younger: spec.externalIPs: 198.51.100.1 is not served on 1 of 2 ports, which older Services have there " +
				"(80/TCP is Service shop/older's): choose another address or other ports (PortConflict)"},
		{"a VIP that an older Service names", []model.Service{with(older, vip, "", tcp), with(service("younger", 2, vip), "", "", tcp)},
			"Service shop/younger: " + field + ": 192.0.2.10 is not served on 1 of 1 ports, which older Services have there " +
				"(80/TCP is Service shop/older's): choose another address or other ports (PortConflict)"},
		{"a VIP that a younger Service names", []model.Service{with(service("older", 1, vip), "", "", tcp), with(younger, vip, "", tcp, udp)},
			"Service shop/younger: spec.externalIPs: 192.0.2.10 is not served on 1 of 2 ports, which older Services have there " +
				"(80/TCP is Service shop/older's): choose another address or other ports (PortConflict)"},
		{"the same ClusterIP in two clusters", []model.Service{with(older, "", "10.96.0.1", tcp), with(younger, "", "10.96.0.1", tcp)},
			"Service shop/younger: spec.clusterIPs: 10.96.0.1 is not served on 1 of 1 ports, which older Services have there " +
				"(80/TCP is Service shop/older's): choose another address or other ports (PortConflict)"},
		{"its own address twice", []model.Service{with(service("one", 1, vip), vip, "", tcp)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := model.Snapshot{Services: tt.services}
			Assign(&s, plan(t))
			got := ""
			for _, p := range s.Problems {
				got += p.String()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
