package plan

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"

	"sallyport/watcher/model"
)

// weighted makes a destination of each weight.
func weighted(weights ...int) []model.Destination {
	d := make([]model.Destination, len(weights))
	for i, w := range weights {
		addr := netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i%250 + 2)})
		d[i] = model.Destination{Addr: netip.AddrPortFrom(addr, 9376), Weight: uint16(w)}
	}
	return d
}

func equalWeights(n int) []model.Destination { return weighted(make([]int, n)...) }

func TestPlainTable(t *testing.T) {
	for _, tt := range []struct {
		weights []int
		want    string
	}{
		{nil, "[]"},
		{[]int{0}, "[0]"},
		{[]int{300}, "[0]"},
		{[]int{1, 0, 1}, "[0 1 2]"},
		{[]int{7, 7}, "[0 1]"},
		{[]int{20, 10, 30}, "[0 0 1 2 2 2]"},
		{[]int{1, 1, 1, 1, 1, 1, 1, 1}, "[0 1 2 3 4 5 6 7]"},
	} {
		if got := fmt.Sprint(Table(weighted(tt.weights...))); got != tt.want {
			t.Errorf("%v: got %s, want %s", tt.weights, got, tt.want)
		}
		if got, want := Slots(weighted(tt.weights...)), len(Table(weighted(tt.weights...))); got != want {
			t.Errorf("%v: %d slots foretold, there are %d", tt.weights, got, want)
		}
	}
}

// TestShares holds each destination's slots to its weight.
func TestShares(t *testing.T) {
	for name, tt := range map[string]struct {
		destinations []model.Destination
		slots        int
	}{
		"9":             {equalWeights(9), 32},
		"16":            {equalWeights(16), 32},
		"1000":          {equalWeights(1000), 2048},
		"5000":          {equalWeights(5000), 16384},
		"40000":         {equalWeights(40000), MaxSlots},
		"5 3 1":         {weighted(5, 3, 1), 32},
		"100 50 7 1":    {weighted(100, 50, 7, 1), 64},
		"60000 1 1 1":   {weighted(60000, 1, 1, 1), 64},
		"many, and one": {append(equalWeights(99), weighted(1000)...), 2048},
	} {
		t.Run(name, func(t *testing.T) {
			table := Table(tt.destinations)
			if len(table) != tt.slots {
				t.Fatalf("%d slots, want %d", len(table), tt.slots)
			}
			if got := Slots(tt.destinations); got != tt.slots {
				t.Errorf("%d slots foretold, want %d", got, tt.slots)
			}
			sum := 0.0
			for _, d := range tt.destinations {
				sum += math.Max(1, float64(d.Weight))
			}
			small := 0 // destinations that have their one slot at the cost of others
			got := make([]int, len(tt.destinations))
			for _, i := range table {
				got[i]++
			}
			want := make([]float64, len(got))
			for i, d := range tt.destinations {
				if want[i] = math.Max(1, float64(d.Weight)) / sum * float64(len(table)); want[i] < 1 {
					small++
				}
			}
			for i := range got {
				if off := math.Abs(float64(got[i]) - want[i]); got[i] < 1 || off > 1+float64(small) {
					t.Errorf("destination %d has %d slots, want %.1f", i, got[i], want[i])
				}
			}
		})
	}
}

// TestFewSlotsMove removes each destination in turn: most slots of the others stay theirs.
func TestFewSlotsMove(t *testing.T) {
	for _, n := range []int{10, 20, 50, 200} {
		all := equalWeights(n)
		before := Table(all)
		moved, kept := 0, 0
		for gone := range all {
			left := slices.Delete(slices.Clone(all), gone, gone+1)
			after := Table(left)
			if len(after) != len(before) {
				continue // another power of two
			}
			for slot, i := range before {
				switch {
				case int(i) == gone:
				case left[after[slot]] == all[i]:
					kept++
				default:
					moved++
				}
			}
		}
		if share := float64(moved) / float64(moved+kept); share > 0.25 {
			t.Errorf("one of %d removed: %.0f %% of the slots of others move, want at most 25 %%", n, 100*share)
		} else {
			t.Logf("one of %d removed: %.1f %% of the slots of others move", n, 100*share)
		}
	}
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{20, 5000} {
		d := equalWeights(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				Table(d)
			}
		})
	}
}
