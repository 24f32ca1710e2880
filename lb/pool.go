// Package lb gives LoadBalancer Services their addresses, out of configured pools.
//
// Assign is pure and looks only at the snapshot and the pools: every edge that is given the same computes the same.
// Pools mean what they mean in MetalLB's ipAddressPools.
package lb

import (
	"net/netip"
	"strings"
)

// A Pool is a named set of addresses that Services may be given.
type Pool struct {
	Name   string
	Ranges []Range
}

// Contains says whether the address is one of the pool's.
func (p Pool) Contains(a netip.Addr) bool {
	for _, r := range p.Ranges {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// String gives "name (range, range)".
func (p Pool) String() string {
	s := make([]string, 0, len(p.Ranges))
	for _, r := range p.Ranges {
		s = append(s, r.String())
	}
	return p.Name + " (" + strings.Join(s, ", ") + ")"
}
