package balance

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// A Picker chooses an endpoint. Pick never returns one of tried, the endpoints that this request was refused by
// already; nil says that none is left.
type Picker interface {
	Pick(tried []*Endpoint) *Endpoint
}

// A RoundRobin picks its endpoints in turn.
type RoundRobin struct {
	endpoints []*Endpoint
	next      atomic.Uint32
}

// NewRoundRobin returns a picker over the endpoints. It begins anywhere: many snapshots in a short time must not send
// the first request of each to the same endpoint.
func NewRoundRobin(endpoints []*Endpoint) *RoundRobin {
	r := &RoundRobin{endpoints: slices.Clone(endpoints)}
	r.next.Store(rand.Uint32())
	return r
}

// Pick returns the next endpoint in turn that was not tried. Only a first try takes a turn: otherwise every other
// request to two endpoints, of which one is dead, would not begin with the live one.
func (r *RoundRobin) Pick(tried []*Endpoint) *Endpoint {
	n := uint32(len(r.endpoints))
	if n == 0 {
		return nil
	}
	first := turn(&r.next, tried) % n
	for i := range n {
		if e := r.endpoints[(first+i)%n]; !slices.Contains(tried, e) {
			return e
		}
	}
	return nil
}

// turn takes the next turn, or looks at it if this is not the first try.
func turn(next *atomic.Uint32, tried []*Endpoint) uint32 {
	if len(tried) == 0 {
		return next.Add(1)
	}
	return next.Load() + 1
}
