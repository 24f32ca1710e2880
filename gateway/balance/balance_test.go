package balance

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

func endpoints(r *Registry, n int) []*Endpoint {
	out := make([]*Endpoint, n)
	for i := range out {
		out[i] = r.Endpoint(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80))
	}
	return out
}

func TestRegistryKeepsStateWhileHeld(t *testing.T) {
	var r Registry
	addr := netip.MustParseAddrPort("10.0.0.1:80")
	first := r.Endpoint(addr)
	first.Begin()
	runtime.GC()
	if again := r.Endpoint(addr); again != first || again.InFlight() != 1 {
		t.Errorf("second Endpoint(%v) = %p in flight %d, want %p in flight 1", addr, again, again.InFlight(), first)
	}
	first.End()
	if n := first.InFlight(); n != 0 {
		t.Errorf("in flight after End = %d, want 0", n)
	}
	runtime.KeepAlive(first)
}

func TestRegistryForgetsWhatNoOneHolds(t *testing.T) {
	var r Registry
	kept := r.Endpoint(netip.MustParseAddrPort("10.0.1.1:80"))
	endpoints(&r, 5)
	for deadline := time.Now().Add(10 * time.Second); r.Len() != 1; runtime.Gosched() {
		runtime.GC()
		if time.Now().After(deadline) {
			t.Fatalf("registry has %d entries, want the 1 that is held", r.Len())
		}
	}
	runtime.KeepAlive(kept)
}

func TestRoundRobinIsEven(t *testing.T) {
	var r Registry
	all := endpoints(&r, 3)
	p := NewRoundRobin(all)
	got := map[*Endpoint]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 30 {
				e := p.Pick(nil)
				mu.Lock()
				got[e]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, e := range all {
		if n := got[e]; n < 99 || n > 101 { // the counter's own wrap may cost one turn
			t.Errorf("%v was picked %d times in 300, want 100", e.Addr(), n)
		}
	}
}

func TestRoundRobinAvoidsTried(t *testing.T) {
	var r Registry
	all := endpoints(&r, 3)
	p := NewRoundRobin(all)
	var tried []*Endpoint
	for range all {
		e := p.Pick(tried)
		if e == nil || slices.Contains(tried, e) {
			t.Fatalf("Pick(%d tried) = %v, want one not tried", len(tried), e)
		}
		tried = append(tried, e)
	}
	if e := p.Pick(tried); e != nil {
		t.Errorf("Pick with all tried = %v, want nil", e.Addr())
	}
	if e := NewRoundRobin(nil).Pick(nil); e != nil {
		t.Errorf("Pick of none = %v, want nil", e.Addr())
	}
}

func TestSplitByWeight(t *testing.T) {
	for _, tt := range []struct {
		weights, want []int // want: picks in each full round of the schedule
	}{
		{[]int{1}, []int{1}},
		{[]int{50, 50}, []int{1, 1}},
		{[]int{90, 10}, []int{9, 1}},
		{[]int{3, 0, 1}, []int{3, 0, 1}},
		{[]int{0, 0}, []int{0, 0}},
		{[]int{1_000_000, 1}, []int{1023, 1}},
	} {
		t.Run(fmt.Sprint(tt.weights), func(t *testing.T) {
			var r Registry
			all := endpoints(&r, len(tt.weights))
			var shares []Share
			for i, w := range tt.weights {
				shares = append(shares, Share{NewRoundRobin(all[i : i+1]), w})
			}
			p := NewSplit(shares)
			p.next.Store(0)
			got := make([]int, len(all))
			for range len(p.schedule) {
				got[slices.Index(all, p.Pick(nil))]++
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("picks = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSplitFallsBackToAnotherShare(t *testing.T) {
	var r Registry
	all := endpoints(&r, 2)
	p := NewSplit([]Share{{NewRoundRobin(nil), 9}, {NewRoundRobin(all), 1}})
	if e := p.Pick(all[:1]); e != all[1] {
		t.Errorf("Pick = %v, want %v", e, all[1].Addr())
	}
	if e := p.Pick(all); e != nil {
		t.Errorf("Pick with all tried = %v, want nil", e.Addr())
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	var r Registry
	all := endpoints(&r, 100)
	var p Picker = NewSplit([]Share{{NewRoundRobin(all[:50]), 3}, {NewRoundRobin(all[50:]), 1}})
	tried := all[:2]
	if n := testing.AllocsPerRun(100, func() { p.Pick(tried) }); n != 0 {
		t.Errorf("Pick allocates %v times, want 0", n)
	}
}

func BenchmarkPick(b *testing.B) {
	var r Registry
	p := NewRoundRobin(endpoints(&r, 10))
	b.ReportAllocs()
	for b.Loop() {
		p.Pick(nil)
	}
}
