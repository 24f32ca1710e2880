package conntrack

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// collected returns how many metrics the vectors give for what a ledger tells.
func (v vectors) collected(l *ledger) int {
	ch := make(chan prometheus.Metric, 100)
	v.collect(ch, l.readings())
	return len(ch)
}

// The metrics of a service port are made once, and go with its account.
func TestInstrumentsLastAsLongAsTheirAccount(t *testing.T) {
	b, v := newBook(100), newVectors()
	b.scrape()
	if n := v.collected(&b.ledger); n != 6 {
		t.Errorf("%d metrics of a service port, want 6", n)
	}
	first := b.readings()[0].instruments
	b.table = []uint64{250}
	b.scrape()
	v.collected(&b.ledger)
	if got := testutil.ToFloat64((*first).counters[bytesIn]); got != 250 {
		t.Errorf("the counter of before is at %v, want 250", got)
	}
	b.keep(nil, b.now)
	b.now = b.now.Add(afterlife + 1)
	for _, gone := range b.settle(b.now) {
		v.forget(gone)
	}
	if n := v.collected(&b.ledger); n != 0 {
		t.Errorf("%d metrics of a service port long gone", n)
	}
	if n := testutil.CollectAndCount(v.connections) + testutil.CollectAndCount(v.open) + testutil.CollectAndCount(v.packets) + testutil.CollectAndCount(v.bytes); n != 0 {
		t.Errorf("%d metrics are kept", n)
	}
}

func TestCollectingAllocatesNothingForAKnownServicePort(t *testing.T) {
	b, v := newBook(100), newVectors()
	b.scrape()
	all, ch := b.readings(), make(chan prometheus.Metric, 6)
	if n := testing.AllocsPerRun(100, func() {
		v.collect(ch, all)
		for len(ch) > 0 {
			<-ch
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
