package stream

import (
	"fmt"
	"net/netip"
	"testing"

	"sallyport/gateway/balance"
	"sallyport/watcher/model"
)

func TestDestinationsOfTheClientsFamilyFirst(t *testing.T) {
	v4, v6 := endpointsOf("10.1.0.1"), endpointsOf("2001:db8::1")
	both := append(v4[:1:1], v6...)
	p := New(Options{})
	t.Cleanup(p.Close)
	svc := service("web", model.TCP, 30001)
	for _, tt := range []struct {
		destinations []model.Destination
		client       netip.Addr
		want         string
	}{
		{both, alice, "10.1.0.1:80"},
		{both, carol, "[2001:db8::1]:80"},
		{v4, carol, "10.1.0.1:80"},
		{v6, alice, "[2001:db8::1]:80"},
	} {
		for range 2 {
			if got := choicesOf(t, p, svc, tt.destinations, []netip.Addr{tt.client})[0].Addr().String(); got != tt.want {
				t.Errorf("%v is sent to %s, want %s", tt.client, got, tt.want)
			}
		}
	}
}

func TestDestinationsByWeight(t *testing.T) {
	p := New(Options{})
	t.Cleanup(p.Close)
	svc := service("web", model.TCP, 30001)
	to := endpointsOf("10.1.0.1", "10.1.0.2", "10.1.0.3")
	to[0].Weight, to[1].Weight = 3, 2 // and 0 is 1
	var clients []netip.Addr
	for range 60 {
		clients = append(clients, alice)
	}
	got := map[*balance.Endpoint]int{}
	for _, e := range choicesOf(t, p, svc, to, clients) {
		got[e]++
	}
	for i, want := range []int{30, 20, 10} {
		if n := got[p.opt.Endpoints.Endpoint(to[i].Addr)]; n != want {
			t.Errorf("%v has %d connections of 60, want %d", to[i].Addr, n, want)
		}
	}
}

func TestIPv6ClientOfAnIPv4Service(t *testing.T) {
	p := New(Options{NodePortAddresses: []netip.Addr{netip.IPv6Loopback()}})
	t.Cleanup(p.Close)
	port := freePort(t)
	s := &model.Snapshot{Services: []model.Service{service("web", model.TCP, port, tcpEcho(t, "a")), service("dns", model.UDP, port, udpEcho(t, "b"))}}
	if err := p.Reconcile(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	edge := fmt.Sprintf("[::1]:%d", port)
	dial(t, edge).mustLine(t, "a")
	if got := ask(t, udpDial(t, edge), "?"); got != "b:?" {
		t.Errorf("answer = %q, want %q", got, "b:?")
	}
}
