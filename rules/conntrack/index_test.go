package conntrack

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

var edge = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

func TestFind(t *testing.T) {
	dns := scenario.Service("dns", "198.51.100.53 2001:db8:1::53", "UDP 53 30053:", "TCP 53 30053:")
	dns.Ports[0].Name, dns.Ports[1].Name = "dns", "dns-tcp"
	dns.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.53")}
	dns.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.53")}
	dns.Created = time.Unix(2000, 0)
	older := scenario.Service("older", "198.51.100.53", "UDP 53 30053:")
	older.Created = time.Unix(1000, 0)
	alone := newIndex([]model.Service{dns}, edge)
	both := newIndex([]model.Service{dns, older}, edge)
	for _, tt := range []struct {
		name     string
		in       *index
		protocol uint8
		addr     string
		want     string
	}{
		{"VIP", alone, unix.IPPROTO_UDP, "198.51.100.53:53", "dns:dns"},
		{"VIP of IPv6", alone, unix.IPPROTO_UDP, "[2001:db8:1::53]:53", "dns:dns"},
		{"other protocol", alone, unix.IPPROTO_TCP, "198.51.100.53:53", "dns:dns-tcp"},
		{"no such protocol", alone, unix.IPPROTO_SCTP, "198.51.100.53:53", ""},
		{"no such port", alone, unix.IPPROTO_UDP, "198.51.100.53:54", ""},
		{"external IP", alone, unix.IPPROTO_UDP, "203.0.113.53:53", "dns:dns"},
		{"cluster IP", alone, unix.IPPROTO_UDP, "10.96.0.53:53", "dns:dns"},
		{"NodePort", alone, unix.IPPROTO_UDP, "192.0.2.1:30053", "dns:dns"},
		{"NodePort of IPv6", alone, unix.IPPROTO_TCP, "[2001:db8::1]:30053", "dns:dns-tcp"},
		{"NodePort at another machine", alone, unix.IPPROTO_UDP, "10.0.0.11:30053", ""},
		{"NodePort at a VIP", alone, unix.IPPROTO_UDP, "198.51.100.53:30053", ""},
		{"of two, the older one", both, unix.IPPROTO_UDP, "198.51.100.53:53", "older:53"},
		{"of two NodePorts, the older one's", both, unix.IPPROTO_UDP, "192.0.2.1:30053", "older:53"},
		{"what the older one leaves", both, unix.IPPROTO_TCP, "198.51.100.53:53", "dns:dns-tcp"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if p := tt.in.find(destination{netip.MustParseAddrPort(tt.addr), tt.protocol}); p != nil {
				got = p.series.service + ":" + p.series.port
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFindAllocatesNothing(t *testing.T) {
	x := newIndex(scenario.ManyServices(1000, 2).Services, edge)
	d := destination{netip.MustParseAddrPort("198.18.3.1:80"), unix.IPPROTO_TCP}
	if x.find(d) == nil {
		t.Fatal("not found")
	}
	if n := testing.AllocsPerRun(100, func() { x.find(d) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHolds(t *testing.T) {
	const udp, tcp = "UDP 53 30053: 10.1.0.2:53", "TCP 80 30080: 10.1.0.2:80"
	x := newIndex([]model.Service{scenario.Service("a", "198.51.100.1", udp, tcp)}, edge)
	for _, tt := range []struct {
		name  string
		in    model.Service
		local []netip.Addr
		want  bool
	}{
		{"the same", scenario.Service("a", "198.51.100.1", udp, tcp), edge, true},
		{"endpoints of TCP", scenario.Service("a", "198.51.100.1", udp, "TCP 80 30080:"), edge, true},
		{"endpoints of UDP", scenario.Service("a", "198.51.100.1", "UDP 53 30053:", tcp), edge, false},
		{"NodePort", scenario.Service("a", "198.51.100.1", udp, "TCP 80 30081:"), edge, false},
		{"VIP", scenario.Service("a", "198.51.100.2", udp, tcp), edge, false},
		{"name", scenario.Service("b", "198.51.100.1", udp, tcp), edge, false},
		{"addresses of the edge", scenario.Service("a", "198.51.100.1", udp, tcp), edge[:1], false},
	} {
		if got := x.holds([]model.Service{tt.in}, tt.local); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}
