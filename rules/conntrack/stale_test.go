package conntrack

import (
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

func services(ports ...string) *index {
	return newIndex([]model.Service{scenario.Service("dns", "198.51.100.53 2001:db8:1::53", ports...)}, edge)
}

func TestStale(t *testing.T) {
	const vip, vip6, local = "198.51.100.53:53", "[2001:db8:1::53]:53", "192.0.2.1:30053"
	two := services("UDP 53 30053: 10.1.0.2:53 10.1.0.3:53 [2001:db8:2::2]:53")
	none := services("UDP 53 30053:")
	gone := newIndex(nil, edge)
	for _, tt := range []struct {
		name       string
		now        *index
		swept      *index
		ours       bool
		at, answer string
		want       bool
	}{
		{"to a destination", two, nil, true, vip, "10.1.0.3:53", false},
		{"to a destination of IPv6", two, nil, true, vip6, "[2001:db8:2::2]:53", false},
		{"to a destination by NodePort", two, nil, true, local, "10.1.0.3:53", false},
		{"to an endpoint that is gone", two, nil, true, vip, "10.1.0.4:53", true},
		{"to one of IPv6", two, nil, true, vip6, "[2001:db8:2::3]:53", true},
		{"to one by NodePort", two, nil, true, local, "10.1.0.4:53", true},
		{"to another target port", two, nil, true, vip, "10.1.0.2:5353", true},
		{"whoever translated it", two, nil, false, vip, "10.1.0.4:53", true},
		{"from before the Service", two, nil, false, vip, vip, true},
		{"no destination left", none, nil, true, vip, "10.1.0.2:53", true},
		{"Service gone", gone, two, true, vip, "10.1.0.2:53", true},
		{"Service gone, its mark lost", gone, two, false, vip, "10.1.0.2:53", true},
		{"Service gone while no one looked", gone, nil, true, vip, "10.1.0.2:53", true},
		{"Service gone, not translated", gone, two, false, vip, vip, false},
		{"another program's translation", gone, nil, false, vip, "10.1.0.2:53", false},
		{"another program's flow", two, two, false, "203.0.113.9:53", "203.0.113.9:53", false},
		{"a NodePort of another machine", two, two, false, "10.0.0.11:30053", "10.0.0.11:30053", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := flowOf(unix.IPPROTO_UDP, tt.at, tt.answer)
			if got := tt.now.stale(&f, tt.swept, tt.ours); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestOutdated(t *testing.T) {
	const udp, tcp = "UDP 53 30053: 10.1.0.2:53 10.1.0.3:53", "TCP 53 30053: 10.1.0.2:53"
	for _, tt := range []struct {
		name       string
		swept, now *index
		want       bool
	}{
		{"first", nil, services(udp), true},
		{"nothing", services(udp, tcp), services(udp, tcp), false},
		{"a Service of UDP", services(tcp), services(udp, tcp), true},
		{"one less", services(udp, tcp), services(tcp), true},
		{"a destination more", services(udp), services("UDP 53 30053: 10.1.0.2:53 10.1.0.3:53 10.1.0.4:53"), false},
		{"a destination less", services(udp), services("UDP 53 30053: 10.1.0.2:53"), true},
		{"another destination", services(udp), services("UDP 53 30053: 10.1.0.2:53 10.1.0.4:53"), true},
		{"no destination left", services(udp), services("UDP 53 30053:"), true},
		{"the port", services(udp), services("UDP 54 30053: 10.1.0.2:53 10.1.0.3:53"), true},
		{"the NodePort", services(udp), services("UDP 53 30054: 10.1.0.2:53 10.1.0.3:53"), true},
		{"TCP alone", services(udp, tcp), services(udp, "TCP 53 30054:"), false},
		{"the edge's addresses", services(udp), newIndex(services(udp).services, edge[:1]), true},
	} {
		if got := tt.now.outdated(tt.swept); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}
