package stream

import "sync/atomic"

// A budget bounds how many things of a kind there are at one time, over all listeners.
type budget struct {
	used atomic.Int64
	most int64
}

// take asks for one more, and reports whether it is to be had. It is paired with give.
func (b *budget) take() bool {
	if b.used.Add(1) > b.most {
		b.used.Add(-1)
		return false
	}
	return true
}

// give returns n.
func (b *budget) give(n int) { b.used.Add(-int64(n)) }
