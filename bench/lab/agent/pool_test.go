package agent

import (
	"fmt"
	"net/netip"
	"testing"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = addr(s)
	}
	return out
}

func TestAddressPool(t *testing.T) {
	p := newAddressPool(netip.MustParsePrefix("10.1.0.8/29"))
	if want := addr("10.1.0.9"); p.gateway != want {
		t.Errorf("gateway %v, want %v", p.gateway, want)
	}
	take := func(want string) {
		t.Helper()
		got, err := p.take()
		if err != nil || got != addr(want) {
			t.Errorf("take() = %v, %v, want %s", got, err, want)
		}
	}
	take("10.1.0.10")
	take("10.1.0.11")
	p.release(addr("10.1.0.10"))
	take("10.1.0.12") // a freed address rests
	take("10.1.0.13")
	take("10.1.0.14")
	take("10.1.0.10")
	_, err := p.take()
	if got, want := fmt.Sprint(err), "no free address in pod CIDR 10.1.0.8/29: 5 are in use"; got != want {
		t.Errorf("take() of a full pool: %s, want %s", got, want)
	}
	p.release(addr("10.1.0.12"))
	take("10.1.0.12")
}

func TestAddressPoolIPv6(t *testing.T) {
	p := newAddressPool(netip.MustParsePrefix("fd00:1::/126"))
	for _, want := range addrs("fd00:1::2", "fd00:1::3") { // IPv6 has no broadcast address
		if got, err := p.take(); err != nil || got != want {
			t.Errorf("take() = %v, %v, want %v", got, err, want)
		}
	}
}
