package balance

import (
	"math/rand/v2"
	"sync/atomic"
)

// maxSlots bounds the schedule of a Split, and with it the resolution of the weights.
const maxSlots = 1024

// A Share is a picker and its weight relative to the other shares of a Split.
type Share struct {
	Picker Picker
	Weight int
}

// A Split shares the picks over several pickers by weight.
type Split struct {
	schedule []Picker // one entry a slot; a picker has as many slots as its weight, evenly spaced
	next     atomic.Uint32
}

// NewSplit returns a picker over the shares. Shares without weight get nothing. Weights are reduced by their greatest
// common divisor and scaled down to 1024 slots, of which every share with weight keeps at least one.
func NewSplit(shares []Share) *Split {
	s := &Split{schedule: schedule(shares, slots(shares))}
	s.next.Store(rand.Uint32())
	return s
}

// Pick returns an endpoint of the share whose turn it is, or of the next ones if that has none to offer.
func (s *Split) Pick(tried []*Endpoint) *Endpoint {
	n := uint32(len(s.schedule))
	if n == 0 {
		return nil
	}
	first := turn(&s.next, tried) % n
	for i := range n {
		if e := s.schedule[(first+i)%n].Pick(tried); e != nil {
			return e
		}
	}
	return nil
}

// slots returns the number of slots for each share.
func slots(shares []Share) []int {
	sum, divisor := 0, 0
	for _, s := range shares {
		weight := max(s.Weight, 0)
		sum += weight
		divisor = gcd(divisor, weight)
	}
	out := make([]int, len(shares))
	for i, s := range shares {
		switch {
		case s.Weight <= 0:
		case sum/divisor <= maxSlots:
			out[i] = s.Weight / divisor
		default:
			out[i] = max(1, s.Weight*maxSlots/sum)
		}
	}
	return out
}

// schedule lays the slots out by smooth weighted round robin: each step every share gains its weight, and the one
// with the most pays the sum of all for its turn.
func schedule(shares []Share, slots []int) []Picker {
	sum := 0
	for _, n := range slots {
		sum += n
	}
	out := make([]Picker, 0, sum)
	credit := make([]int, len(shares))
	for range sum {
		best := 0
		for i, n := range slots {
			credit[i] += n
			if credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= sum
		out = append(out, shares[best].Picker)
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
