package network

import (
	"net/netip"
	"testing"
)

func TestPlansDoNotOverlap(t *testing.T) {
	var all []netip.Prefix
	for index := range maxLabs {
		p := newPlan(index)
		all = append(all, p.clients.v4, p.nodes.v4, p.uplink, p.clients.v6, p.nodes.v6)
		if !p.clients.v4.Contains(p.pool.Addr()) || !p.clients.v6.Contains(p.pool6.Addr()) {
			t.Errorf("plan %d: pools %v, %v are not in the clients' network %v, %v", index, p.pool, p.pool6, p.clients.v4, p.clients.v6)
		}
		for _, offset := range []int{clientOffset, routerOffset, controlOffset, edgeClientsOffset + maxEdges} {
			v4, v6 := p.clients.host(offset)
			if p.pool.Contains(v4) || p.pool6.Contains(v6) || !p.clients.v4.Contains(v4) || !p.clients.v6.Contains(v6) {
				t.Errorf("plan %d: host %v, %v must lie in the clients' network and not in a pool", index, v4, v6)
			}
		}
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%v and %v overlap", a, b)
			}
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"a", true},
		{"l4-rules", true},
		{"", false},
		{"-a", false},
		{"a.b", false},
		{"Lab", false},
		{"a/../b", false},
		{"a-name-of-more-than-thirty-letters", false},
	} {
		if err := CheckName(tt.name); (err == nil) != tt.ok {
			t.Errorf("CheckName(%q) = %v, want ok %v", tt.name, err, tt.ok)
		}
	}
}
