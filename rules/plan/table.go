package plan

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"

	"sallyport/watcher/model"
)

const (
	// PlainSlots is up to how many slots a table lists its destinations in order. Larger ones are spread by Maglev.
	PlainSlots = 8
	// MaxSlots is how many slots a table has at most: they are counted by 16 bits of a mark.
	MaxSlots = 1 << 16
)

// Table spreads connections over destinations: one whose hash, modulo the length of the table, is i goes to the destination
// with index Table[i]. All edges that see the same destinations have the same table. No destinations have none.
//
// Up to PlainSlots, a destination has as many slots as its weight, in order. Above, slots are dealt out by Maglev hashing
// (Eisenbud et al., NSDI 2016, section 3.4) over a power of two of at least two slots a destination: a destination that comes
// or goes leaves most slots of the others where they are. A share is then within one slot of what the weight asks for, and at
// least one slot; unequal weights get up to 16 slots a destination to be told apart by.
func Table(destinations []model.Destination) []uint32 {
	if len(destinations) == 0 {
		return nil
	}
	weights, sum := reducedWeights(destinations)
	size := Slots(destinations)
	if size <= PlainSlots {
		return plainTable(weights)
	}
	hashes := make([]uint64, len(weights))
	for i := range hashes {
		hashes[i] = hash(destinations[i].Addr)
	}
	return maglev(hashes, quotas(hashes, weights, sum, size), size)
}

// Slots is how many slots the table for destinations has, without making it.
func Slots(destinations []model.Destination) int {
	destinations = destinations[:min(len(destinations), MaxSlots)]
	divisor, sum := 0, 0
	for _, d := range destinations {
		divisor = gcd(divisor, weight(d))
		sum += weight(d)
	}
	if divisor > 0 {
		sum /= divisor
	}
	if sum <= PlainSlots {
		return sum
	}
	return min(powerOfTwo(2*sum), powerOfTwo(16*len(destinations)), MaxSlots)
}

// reducedWeights are the weights, without what they have in common, and their sum.
func reducedWeights(destinations []model.Destination) (weights []int, sum int) {
	weights = make([]int, min(len(destinations), MaxSlots))
	divisor := 0
	for i := range weights {
		weights[i] = weight(destinations[i])
		divisor = gcd(divisor, weights[i])
	}
	for i := range weights {
		weights[i] /= divisor
		sum += weights[i]
	}
	return weights, sum
}

func weight(d model.Destination) int { return max(1, int(d.Weight)) }

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// powerOfTwo is the smallest one that is at least n.
func powerOfTwo(n int) int { return 1 << bits.Len(uint(n-1)) }

func plainTable(weights []int) []uint32 {
	table := make([]uint32, 0, PlainSlots)
	for i, w := range weights {
		for range w {
			table = append(table, uint32(i))
		}
	}
	return table
}

// quotas says how many of the slots each destination gets: by weight, rounded down, but one at least. What is left over goes
// one by one to destinations in the order of their hashes, so that the same ones have more while others come and go.
func quotas(hashes []uint64, weights []int, sum, size int) []int {
	quota := make([]int, len(weights))
	order := make([]int, len(weights))
	left := size
	for i, w := range weights {
		quota[i] = max(1, size*w/sum)
		order[i] = i
		left -= quota[i]
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(hashes[a], hashes[b]), a-b) })
	for left != 0 {
		for _, i := range order {
			switch {
			case left > 0:
				quota[i]++
				left--
			case left < 0 && quota[i] > 1: // many small ones were rounded up
				quota[i]--
				left++
			}
		}
	}
	return quota
}

// maglev deals out the slots: in each round, destinations take what is free and first in an order of their own.
func maglev(hashes []uint64, quota []int, size int) []uint32 {
	type walk struct{ at, step uint64 }
	walks := make([]walk, len(quota))
	for i := range walks {
		walks[i] = walk{hashes[i], mix(hashes[i]) | 1} // an odd step visits every slot of a power of two
	}
	const free = ^uint32(0)
	table := slices.Repeat([]uint32{free}, size)
	rounds, mask := slices.Max(quota), uint64(size-1)
	for round := range rounds {
		for i := range walks {
			w := &walks[i]
			for range quota[i]*(round+1)/rounds - quota[i]*round/rounds {
				for table[w.at&mask] != free {
					w.at += w.step
				}
				table[w.at&mask] = uint32(i)
			}
		}
	}
	return table
}

// hash is the same on all edges.
func hash(a netip.AddrPort) uint64 {
	h := fnv.New64a()
	addr := a.Addr().As16()
	_, _ = h.Write(binary.BigEndian.AppendUint16(addr[:], a.Port())) // a hash takes all
	return mix(h.Sum64())
}
