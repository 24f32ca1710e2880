package iptables

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// TestIncremental changes Services at random: a Renderer that has seen what was before gives what a new one gives.
func TestIncremental(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, o := randomSnapshot(r), randomOptions(r)
		var old [2]Renderer
		for step := range 12 {
			for i, f := range plan.Families {
				p := plan.New(s, f, o)
				got, want := print(t, old[i].Render(p)), print(t, Render(p))
				if got != want {
					t.Fatalf("seed %d, step %d, %v: got\n%s\nwant\n%s", seed, step, f, got, want)
				}
			}
			s = mutate(r, s)
			if r.IntN(10) == 0 {
				o = randomOptions(r)
				o.HashSeed = r.Uint32()
			}
		}
	}
}

func print(t *testing.T, rs Ruleset) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := rs.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// mutate gives a snapshot that shares with s what did not change.
func mutate(r *rand.Rand, s *model.Snapshot) *model.Snapshot {
	next := *s
	next.Services = slices.Clone(s.Services)
	fresh := randomSnapshot(r).Services
	for range 1 + r.IntN(3) {
		i, from := r.IntN(len(next.Services)), fresh[r.IntN(len(fresh))]
		svc := &next.Services[i]
		switch r.IntN(7) {
		case 0:
			svc.VIPs = from.VIPs
		case 1:
			svc.SourceRanges = from.SourceRanges
		case 2:
			svc.Limits, svc.Affinity = from.Limits, from.Affinity
		case 3:
			svc.ExternalIPs, svc.ClusterIPs = from.ExternalIPs, from.ClusterIPs
		case 4:
			next.Services = append(slices.Delete(next.Services, i, i+1), from)
		default:
			svc.Ports = slices.Clone(svc.Ports)
			svc.Ports[0].Destinations = from.Ports[0].Destinations
		}
	}
	return &next
}

// TestUnchangedIsKept holds that a change of one Service leaves the text of others' chains in place, not only equal.
func TestUnchangedIsKept(t *testing.T) {
	s := scenario.ManyServices(2000, 5)
	var r Renderer
	before := r.Render(plan.New(s, plan.IPv4, testOptions)).Tables[1]
	next := *s
	next.Services = slices.Clone(s.Services)
	next.Services[777].Ports = slices.Clone(s.Services[777].Ports)
	next.Services[777].Ports[0].Destinations = s.Services[777].Ports[0].Destinations[1:]
	after := r.Render(plan.New(&next, plan.IPv4, testOptions)).Tables[1]
	moved := 0
	for i, c := range after.Chains {
		if len(c.Text) > 2000 && &c.Text[0] != &before.Chains[i].Text[0] {
			moved++
		}
	}
	if moved != 2 {
		t.Errorf("%d leaves were made anew, want those of the VIP and the NodePort", moved)
	}
}

// BenchmarkOneEndpoint renders the change of one endpoint.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{1000, 10000, 30000} {
		s := scenario.ManyServices(n, 5)
		changed := *s
		changed.Services = slices.Clone(s.Services)
		changed.Services[n/2].Ports = slices.Clone(s.Services[n/2].Ports)
		changed.Services[n/2].Ports[0].Destinations = s.Services[n/2].Ports[0].Destinations[1:]
		both := []*model.Snapshot{s, &changed}
		b.Run(fmt.Sprintf("plan/services=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				plan.New(both[i%2], plan.IPv4, testOptions)
			}
		})
		b.Run(fmt.Sprintf("render/services=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			plans := []*plan.Plan{plan.New(s, plan.IPv4, testOptions), plan.New(&changed, plan.IPv4, testOptions)}
			var r Renderer
			r.Render(plans[1])
			for i := 0; b.Loop(); i++ {
				r.Render(plans[i%2])
			}
		})
		b.Run(fmt.Sprintf("anew/services=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			p := plan.New(s, plan.IPv4, testOptions)
			for b.Loop() {
				Render(p)
			}
		})
	}
}
