package lb

import (
	"fmt"
	"net/netip"
	"strings"
)

// A Range is the addresses from First to Last, both included and of one family.
type Range struct{ First, Last netip.Addr }

// ParseRange reads a CIDR ("192.0.2.0/24") or a range ("192.0.2.10-192.0.2.20"), as MetalLB does. Host bits in a CIDR are
// an error, because what was meant is not known.
func ParseRange(s string) (Range, error) {
	s = strings.TrimSpace(s)
	if first, last, ok := strings.Cut(s, "-"); ok {
		return parseFromTo(s, strings.TrimSpace(first), strings.TrimSpace(last))
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		return Range{}, fmt.Errorf("%q is a single address: write %s", s, netip.PrefixFrom(addr, addr.BitLen()))
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return Range{}, fmt.Errorf("%q is neither a CIDR (192.0.2.0/24) nor a range (192.0.2.10-192.0.2.20)", s)
	}
	if p.Addr().Is4In6() {
		return Range{}, fmt.Errorf("%q is an IPv4 address in IPv6 form: write it as IPv4", s)
	}
	if m := p.Masked(); m != p {
		return Range{}, fmt.Errorf("%q has host bits set: did you mean %v, or the range %v-%v?", s, m, p.Addr(), lastOf(m))
	}
	return Range{p.Addr(), lastOf(p)}, nil
}

func parseFromTo(s, first, last string) (Range, error) {
	var r Range
	var err error
	for _, v := range []struct {
		text string
		addr *netip.Addr
	}{{first, &r.First}, {last, &r.Last}} {
		if *v.addr, err = netip.ParseAddr(v.text); err != nil || v.addr.Zone() != "" || v.addr.Is4In6() {
			return Range{}, fmt.Errorf("%q: %q is not an IP address", s, v.text)
		}
	}
	switch {
	case r.First.Is4() != r.Last.Is4():
		return Range{}, fmt.Errorf("%q mixes IPv4 and IPv6: write two ranges", s)
	case r.Last.Less(r.First):
		return Range{}, fmt.Errorf("%q ends before it begins: did you mean %v-%v?", s, r.Last, r.First)
	}
	return r, nil
}

// lastOf is the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if host := 8*(i+1) - p.Bits(); host > 0 {
			b[i] |= byte(1<<min(host, 8) - 1)
		}
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// Contains says whether the address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.Is4() == r.First.Is4() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps says whether the ranges share an address.
func (r Range) Overlaps(o Range) bool {
	return r.First.Is4() == o.First.Is4() && !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// Prefixes are the range's addresses as the fewest prefixes, in ascending order.
func (r Range) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	for next := r.First; ; {
		p := netip.PrefixFrom(next, next.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(next, p.Bits()-1)
			if wider.Masked().Addr() != next || r.Last.Less(lastOf(wider)) {
				break
			}
			p = wider
		}
		all = append(all, p)
		last := lastOf(p)
		if last == r.Last {
			return all
		}
		next = last.Next()
	}
}

// String gives a CIDR where the range is one, else "first-last".
func (r Range) String() string {
	if ps := r.Prefixes(); len(ps) == 1 {
		return ps[0].String()
	}
	return r.First.String() + "-" + r.Last.String()
}
