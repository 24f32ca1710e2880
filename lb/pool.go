// Package lb gives LoadBalancer Services their addresses, out of configured pools.
//
// Assign is pure and looks only at the snapshot and the pools: every edge that is given the same computes the same.
// Pools mean what they mean in MetalLB's ipAddressPools.
package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// A Pool is a named set of addresses that Services may be given.
type Pool struct {
	Name   string
	Ranges []Range
}

// ParsePool reads a pool's addresses, each a CIDR or a range "first-last". The error holds one for each bad value.
func ParsePool(name string, addresses []string) (Pool, error) {
	p := Pool{Name: name}
	var errs []error
	if name == "" {
		errs = append(errs, errors.New("the pool has no name"))
	}
	if len(addresses) == 0 {
		errs = append(errs, fmt.Errorf("pool %s has no addresses", name))
	}
	for _, a := range addresses {
		r, err := ParseRange(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.Ranges = append(p.Ranges, r)
	}
	return p, errors.Join(errs...)
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

// Prefixes are the pool's addresses as the fewest prefixes for each range.
func (p Pool) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, r := range p.Ranges {
		all = append(all, r.Prefixes()...)
	}
	return all
}

// String gives "name (range, range)".
func (p Pool) String() string {
	s := make([]string, 0, len(p.Ranges))
	for _, r := range p.Ranges {
		s = append(s, r.String())
	}
	return p.Name + " (" + strings.Join(s, ", ") + ")"
}

// CheckPools refuses pools of the same name, and addresses that stand in more than one range: it would be left to chance
// which pool's settings count.
func CheckPools(pools []Pool) error {
	var errs []error
	for i, p := range pools {
		for j, r := range p.Ranges {
			errs = append(errs, overlaps(p, r, Pool{p.Name, p.Ranges[:j]}))
			for _, earlier := range pools[:i] {
				errs = append(errs, overlaps(p, r, earlier))
			}
		}
		for _, earlier := range pools[:i] {
			if earlier.Name == p.Name {
				errs = append(errs, fmt.Errorf("two pools are called %s: rename one, or put their addresses together", p.Name))
			}
		}
	}
	return errors.Join(errs...)
}

// overlaps is the error for each range of the earlier pool that shares addresses with r.
func overlaps(p Pool, r Range, earlier Pool) error {
	var errs []error
	for _, e := range earlier.Ranges {
		if e.Overlaps(r) {
			errs = append(errs, fmt.Errorf("%v of pool %s overlaps %v of pool %s: leave each address to one of them", r, p.Name, e, earlier.Name))
		}
	}
	return errors.Join(errs...)
}
