package stream

import "sync/atomic"

// A budget bounds how many things of a kind there are at one time, over all listeners.
type budget struct {
	used atomic.Int64
	most int64
}

// take asks for one more for a holder that has own, and reports whether it is to be had. It is paired with give. No one gets
// more than is left over for all others: one holder in a flood has half, two have a third each, and the rest is there for those
// who have few.
func (b *budget) take(own int) bool {
	if b.used.Add(1)+int64(own) > b.most {
		b.used.Add(-1)
		return false
	}
	return true
}

// give returns n.
func (b *budget) give(n int) { b.used.Add(-int64(n)) }
