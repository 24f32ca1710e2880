package main

import (
	"net/netip"
	"slices"
	"testing"

	"sallyport/cmd/sallyport/config"
)

// TestIngressesShowWhereClientsCanConnect: an address that L7 listens on need not be one.
func TestIngressesShowWhereClientsCanConnect(t *testing.T) {
	var primary []netip.Addr
	if a := primaryAddress("udp4"); a.IsValid() {
		primary = []netip.Addr{a}
	}
	one := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for _, tt := range []struct {
		name      string
		addresses []string
		status    []netip.Addr
		want      []netip.Addr
	}{
		{"every address", []string{"edge"}, nil, primary},
		{"every address, as IPv4 writes it", []string{"0.0.0.0"}, nil, primary},
		{"every address, as IPv6 writes it", []string{"::"}, nil, primary},
		{"loopback beside another", []string{"127.0.0.1", "192.0.2.1", "::1"}, nil, one},
		{"configured", []string{"edge"}, one, one},
	} {
		c := config.Default()
		c.L7.Addresses, c.Status.IngressAddresses = tt.addresses, tt.status
		if got := ingressAddresses(c); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
