package balance

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
)

// A Rendezvous picks by a client's address alone, without any state: each client has an order of the endpoints of its own
// (highest random weight, Thaler and Ravishankar 1998). Of the clients of an endpoint that goes, each moves to the
// next in its order, and one that comes takes its share evenly from all; no other client moves. Its cost grows with the number
// of endpoints, by a few ns each.
type Rendezvous struct {
	seed       uint64
	candidates []candidate
	even       bool
}

type candidate struct {
	endpoint *Endpoint
	hash     uint64
	weight   float64
}

// NewRendezvous returns a picker over the endpoints. Pickers of equal seed, wherever they run, agree; who knows the seed
// can find an address that leads to a given endpoint.
func NewRendezvous(seed uint64, endpoints []Weighted) *Rendezvous {
	r := &Rendezvous{seed: seed, even: even(endpoints), candidates: make([]candidate, len(endpoints))}
	for i, e := range endpoints {
		addr := e.Endpoint.Addr()
		hash := scramble(hashAddr(seed, addr.Addr()) ^ uint64(addr.Port()))
		r.candidates[i] = candidate{e.Endpoint, hash, float64(e.Weight)}
	}
	return r
}

// Pick returns the first endpoint in the client's order that was not tried; nil says that none is left.
func (r *Rendezvous) Pick(client netip.Addr, tried []*Endpoint) *Endpoint {
	key := hashAddr(r.seed, client)
	var best *Endpoint
	highest := math.Inf(-1)
	for i := range r.candidates {
		c := &r.candidates[i]
		if score := r.score(c, key); score > highest && !slices.Contains(tried, c.endpoint) {
			best, highest = c.endpoint, score
		}
	}
	return best
}

// score gives each candidate a number at random, so that a candidate's chance of the highest one is its share of the
// weights: -weight/ln(u) for u uniform in (0, 1). The logarithm, the dearest part, is not needed where all weigh the same.
func (r *Rendezvous) score(c *candidate, key uint64) float64 {
	u := (float64(scramble(c.hash^key)>>11) + 0.5) / (1 << 53)
	if r.even {
		return u
	}
	return -c.weight / math.Log(u)
}

// hashAddr hashes an address; an IPv4 address and its IPv6-mapped form are the same.
func hashAddr(seed uint64, a netip.Addr) uint64 {
	b := a.As16()
	high, low := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	return scramble(scramble(scramble(seed)^high) ^ low)
}

// scramble is a bijection in which each bit of the result depends on each bit of x: the finaliser of SplitMix64
// (Steele, Lea and Flood 2014).
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
