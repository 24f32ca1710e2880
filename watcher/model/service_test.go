package model

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestPreferredDestinations(t *testing.T) {
	const v4, w4, v6 = "10.1.0.2:80", "10.1.0.3:80", "[2001:db8::2]:80"
	for _, tt := range []struct {
		name     string
		has      []string
		want     int
		wantLast string
	}{
		{"none", nil, 0, ""},
		{"IPv4", []string{v4, w4}, 2, w4},
		{"both", []string{v4, w4, v6}, 2, w4},
		{"IPv6", []string{v6}, 1, v6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var p ServicePort
			for _, a := range tt.has {
				p.Destinations = append(p.Destinations, Destination{Addr: netip.MustParseAddrPort(a)})
			}
			got := p.Preferred()
			if len(got) != tt.want || tt.want > 0 && got[len(got)-1].Addr.String() != tt.wantLast {
				t.Errorf("got %s", fmt.Sprint(got))
			}
		})
	}
}
