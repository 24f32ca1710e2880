package iptables

import (
	"fmt"
	"testing"

	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// TestOneNetwork has the edge, VIPs and held addresses on one network, as where MetalLB or keepalived did the same before: the
// prefix that leads into the tree of the ones takes in the others.
func TestOneNetwork(t *testing.T) {
	first := scenario.Service("first", "192.0.2.10 2001:db8:e::10", "TCP 80 30001: 10.1.0.2:80 [2001:db8:1::2]:80")
	second := scenario.Service("second", "192.0.2.20 2001:db8:e::20", "TCP 80 30002: 10.1.0.3:80 [2001:db8:1::3]:80")
	first.Limits, second.Limits = &model.Limits{PerClient: 1}, &model.Limits{PerClient: 1}
	o := everywhere()
	o.Groups = []plan.Group{{Name: "a", SNATAddresses: []plan.Range{addrRange("192.0.2.12", "192.0.2.15"), addrRange("2001:db8:e::12", "2001:db8:e::15")},
		NodesGateway: addrs("192.0.2.2 2001:db8:e::2")}}
	for _, tt := range []struct{ flow, want, beyond string }{
		{"192.0.2.99 -> tcp 192.0.2.10:22", "REJECT", "REJECT"},
		{"2001:db8:e::99 -> tcp [2001:db8:e::20]:22", "REJECT", "REJECT"},
		{"192.0.2.99 -> tcp 192.0.2.12:22", "DROP", "DROP"},
		{"192.0.2.99 -> tcp 192.0.2.1:22", "not ours", "not ours"},
		{"192.0.2.99 -> tcp 192.0.2.10:80", "10.1.0.2:80 snat 192.0.2.12-192.0.2.15", "DROP"},
		{"192.0.2.99 -> tcp 192.0.2.1:30002", "10.1.0.3:80 masq", "DROP"},
		{"2001:db8:e::99 -> tcp [2001:db8:e::1]:30001", "[2001:db8:1::2]:80 masq", "DROP"},
	} {
		tr := tracerOf(t, scenario.Snapshot(first, second), familyOf(tt.flow), o)
		if got, _ := tr.trace(tt.flow); got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.flow, got, tt.want)
		}
		tr.beyond = "connections"
		if got, _ := tr.trace(tt.flow); got != tt.beyond {
			t.Errorf("%s, beyond the limit\ngot  %s\nwant %s", tt.flow, got, tt.beyond)
		}
	}
}

// TestClusterIPWithManyPorts has a cluster IP whose ports are a tree: those between them are refused, as all others are.
func TestClusterIPWithManyPorts(t *testing.T) {
	var ports []string
	for i := range 60 {
		ports = append(ports, fmt.Sprintf("TCP %d 0: 10.1.0.2:80 10.1.0.3:80", 8000+3*i))
	}
	svc := scenario.Service("many", "", ports...)
	svc.ClusterIPs = addrs("10.96.0.10")
	for flow, want := range map[string]string{
		"192.0.2.9 -> tcp 10.96.0.10:8003": "10.1.0.2:80 10.1.0.3:80 masq",
		"192.0.2.9 -> tcp 10.96.0.10:8004": "REJECT",
		"192.0.2.9 -> tcp 10.96.0.10:9000": "REJECT",
		"192.0.2.9 -> udp 10.96.0.10:8003": "REJECT",
	} {
		if got := fateIn(t, scenario.Snapshot(svc), testOptions, flow); got != want {
			t.Errorf("%s: got %s, want %s", flow, got, want)
		}
	}
}
