package iptables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestMerge(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "[]"},
		{"10.0.0.1", "[10.0.0.1/32]"},
		{"10.0.0.1 10.0.0.2", "[10.0.0.1/32 10.0.0.2/32]"},
		{"10.0.0.0 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4", "[10.0.0.0/30 10.0.0.4/32]"},
		{"10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5", "[10.0.0.1/32 10.0.0.2/31 10.0.0.4/31]"},
		{"10.0.0.0 10.0.0.2 10.0.0.3", "[10.0.0.0/32 10.0.0.2/31]"},
	} {
		var addrs []netip.Addr
		for a := range strings.FieldsSeq(tt.in) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		if got := fmt.Sprint(merge(addrs)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.in, got, tt.want)
		}
	}
}
