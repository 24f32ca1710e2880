package balance

import (
	"math"
	"net/netip"
	"slices"
	"testing"
)

func clientAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
}

// weighted gives the endpoints the weights, or 1 each.
func weighted(endpoints []*Endpoint, weights ...int) []Weighted {
	out := make([]Weighted, len(endpoints))
	for i, e := range endpoints {
		out[i] = Weighted{e, 1}
		if weights != nil {
			out[i].Weight = weights[i]
		}
	}
	return out
}

func TestRendezvousSharesByWeight(t *testing.T) {
	const clients = 20_000
	for _, weights := range [][]int{{1, 1, 1}, {7, 7}, {1, 2, 5}} {
		var r Registry
		all := endpoints(&r, len(weights))
		p := NewRendezvous(1, weighted(all, weights...))
		got, sum := make([]int, len(all)), 0
		for i := range clients {
			got[slices.Index(all, p.Pick(clientAddr(i), nil))]++
		}
		for _, w := range weights {
			sum += w
		}
		for i, n := range got {
			want := float64(clients*weights[i]) / float64(sum)
			if math.Abs(float64(n)-want) > 0.05*want {
				t.Errorf("weights %v: endpoint %d has %d clients of %d, want about %.0f", weights, i, n, clients, want)
			}
		}
	}
}

func TestRendezvousMovesOnlyTheClientsOfAnEndpointThatGoes(t *testing.T) {
	for name, weights := range map[string][]int{"even": {1, 1, 1, 1}, "weighted": {3, 1, 2, 2}} {
		t.Run(name, func(t *testing.T) {
			var r Registry
			all := endpoints(&r, 4)
			before := NewRendezvous(7, weighted(all, weights...))
			after := NewRendezvous(7, weighted(all[:3], weights[:3]...))
			moved := 0
			for i := range 4000 {
				was, is := before.Pick(clientAddr(i), nil), after.Pick(clientAddr(i), nil)
				switch {
				case was != all[3] && was != is:
					t.Fatalf("client %d moved from %v to %v, which is no reason of its own", i, was.Addr(), is.Addr())
				case was == all[3]:
					moved++
					if next := before.Pick(clientAddr(i), all[3:]); next != is {
						t.Fatalf("client %d: next in its order is %v, without the endpoint %v", i, next.Addr(), is.Addr())
					}
				}
			}
			if moved == 0 {
				t.Error("no client had the endpoint that goes")
			}
		})
	}
}

// Edges of one seed agree, whatever they are given the endpoints by: these choices are fixed for ever.
func TestRendezvousIsTheSameEverywhere(t *testing.T) {
	var r Registry
	all := endpoints(&r, 5)
	backwards := slices.Clone(all)
	slices.Reverse(backwards)
	one, other := NewRendezvous(42, weighted(all)), NewRendezvous(42, weighted(backwards))
	var got []int
	for i := range 12 {
		e := one.Pick(clientAddr(i), nil)
		if e != other.Pick(netip.AddrFrom16(clientAddr(i).As16()), nil) {
			t.Errorf("client %d: the order of the endpoints or the form of the address matters", i)
		}
		got = append(got, slices.Index(all, e))
	}
	if want := []int{0, 3, 2, 3, 0, 2, 4, 0, 1, 1, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("choices = %v, want %v", got, want)
	}
}

func TestRendezvousTriesAllInTurn(t *testing.T) {
	var r Registry
	all := endpoints(&r, 3)
	p := NewRendezvous(0, weighted(all))
	var tried []*Endpoint
	for range all {
		e := p.Pick(clientAddr(1), tried)
		if e == nil || slices.Contains(tried, e) {
			t.Fatalf("Pick(%d tried) = %v, want one not tried", len(tried), e)
		}
		tried = append(tried, e)
	}
	if e := p.Pick(clientAddr(1), tried); e != nil {
		t.Errorf("Pick with all tried = %v, want nil", e.Addr())
	}
}

func TestTurnsByWeight(t *testing.T) {
	for _, tt := range []struct{ weights, want []int }{
		{[]int{1, 1, 1}, []int{8, 8, 8}},
		{[]int{5, 5}, []int{12, 12}},
		{[]int{1, 2, 3}, []int{4, 8, 12}},
	} {
		var r Registry
		all := endpoints(&r, len(tt.weights))
		p := NewTurns(weighted(all, tt.weights...))
		got := make([]int, len(all))
		for range 24 {
			got[slices.Index(all, p.Pick(nil))]++
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("picks by weights %v = %v, want %v", tt.weights, got, tt.want)
		}
	}
	if e := NewTurns(nil).Pick(nil); e != nil {
		t.Errorf("Pick of none = %v, want nil", e.Addr())
	}
}

func TestRendezvousDoesNotAllocate(t *testing.T) {
	var r Registry
	p := NewRendezvous(1, weighted(endpoints(&r, 100)))
	client := clientAddr(1)
	if n := testing.AllocsPerRun(100, func() { p.Pick(client, nil) }); n != 0 {
		t.Errorf("Pick allocates %v times, want 0", n)
	}
}

func BenchmarkRendezvous(b *testing.B) {
	var r Registry
	p := NewRendezvous(1, weighted(endpoints(&r, 100)))
	client := clientAddr(1)
	b.ReportAllocs()
	for b.Loop() {
		p.Pick(client, nil)
	}
}
