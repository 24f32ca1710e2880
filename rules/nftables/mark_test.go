package nftables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// guarded makes Services of which each lets in a network of its own, and has limits.
func guarded(n int) *model.Snapshot {
	s := scenario.Snapshot()
	for i := range n {
		at := fmt.Sprintf("%d.%d", i>>8, i&255)
		svc := scenario.Service(fmt.Sprint("s", i), "198."+at+".1", "TCP 80 0: 10.1.0.2:80")
		svc.SourceRanges = &model.SourceRanges{Prefixes: prefixes("10." + at + ".0/24")}
		svc.Limits = &model.Limits{NewPerSecond: 20}
		s.Services = append(s.Services, svc)
	}
	return s
}

// TestServicesHaveTheirOwnMarks has so many Services that some would fall on the same mark: no source range of one may let clients
// into another.
func TestServicesHaveTheirOwnMarks(t *testing.T) {
	const n = 20_000
	s := guarded(n)
	hashed := map[uint32]int{}
	for i := range s.Services {
		var alone marks
		alone.next()
		hashed[alone.service(testOptions, &s.Services[i])]++
	}
	if len(hashed) == n {
		t.Fatal("no two Services would have the same mark")
	}
	tr := newTracer(t, plan.New(s, plan.IPv4, testOptions))
	marks := map[string]bool{}
	for key, mark := range tr.Elements(serviceIDs) {
		if marks[mark] {
			t.Errorf("%s has the mark of another Service, %s", key, mark)
		}
		marks[mark] = true
		at := strings.TrimSuffix(strings.TrimPrefix(key, "198."), ".1 . tcp . 80")
		if _, found := tr.Elements(sourceRanges)[mark+" . 10."+at+".0/24"]; !found {
			t.Errorf("%s, %s: its source range is missing", key, mark)
		}
	}
	if ranges := len(tr.Elements(sourceRanges)); len(marks) != n || ranges != n {
		t.Errorf("%d marks and %d source ranges, want %d", len(marks), ranges, n)
	}
}

// TestMarksAreKept has Services come and go: those that stay keep their marks, and at no time have two the same.
func TestMarksAreKept(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var m marks
	last := map[string]uint32{}
	for round := range 50 {
		m.next()
		now, holders := map[string]uint32{}, map[uint32]string{}
		for _, i := range r.Perm(40) {
			what := fmt.Sprint("endpoint ", i)
			if r.IntN(3) == 0 {
				continue
			}
			mark, _ := m.mark(what, 1, 1, 100)
			if other := holders[mark]; other != "" {
				t.Fatalf("round %d: %s has mark %d, as has %q", round, what, mark, other)
			}
			if was, had := last[what]; had && was != mark {
				t.Fatalf("round %d: %s has mark %d, and had %d", round, what, mark, was)
			}
			now[what], holders[mark] = mark, what
		}
		last = now
	}
}

// TestKeptHaveTheirOwnMarks has as many service ports keep their clients as a plan allows: none has the mark of another.
func TestKeptHaveTheirOwnMarks(t *testing.T) {
	s := scenario.Snapshot()
	for i := range 5000 {
		svc := scenario.Service(fmt.Sprint("s", i), fmt.Sprintf("198.18.%d.%d", i>>8, i&255), "TCP 80 0: 10.1.0.2:80")
		svc.Affinity = &model.Affinity{Timeout: time.Hour, Exact: true}
		s.Services = append(s.Services, svc)
	}
	p := plan.New(s, plan.IPv4, testOptions)
	tr, marks := newTracer(t, p), map[string]bool{}
	for _, mark := range tr.Elements(stickyPorts) {
		marks[mark] = true
	}
	kept := len(s.Services) - len(p.Problems)
	if kept < 2000 || len(marks) != kept || len(tr.Elements(stickyEndpoints)) != kept {
		t.Errorf("%d service ports with %d marks and %d endpoints, want %d", len(tr.Elements(stickyPorts)), len(marks), len(tr.Elements(stickyEndpoints)), kept)
	}
}

// TestClusters has Services of the same name in two clusters: none lets in whom the other does.
func TestClusters(t *testing.T) {
	s := guarded(2)
	for i := range s.Services {
		s.Services[i].Ref.Name, s.Services[i].Ref.Cluster = "same", string(rune('a'+i))
	}
	s.Services[1].Ports[0].Destinations[0].Addr = netip.MustParseAddrPort("10.1.0.3:80")
	tr := newTracer(t, plan.New(s, plan.IPv4, testOptions))
	for flow, want := range map[string]string{
		"10.0.0.9 -> tcp 198.0.0.1:80": "10.1.0.2:80 masq",
		"10.0.0.9 -> tcp 198.0.1.1:80": "DROP",
		"10.0.1.9 -> tcp 198.0.0.1:80": "DROP",
		"10.0.1.9 -> tcp 198.0.1.1:80": "10.1.0.3:80 masq",
	} {
		if got, _ := tr.Trace(flow); got != want {
			t.Errorf("%s: got %s, want %s", flow, got, want)
		}
	}
}
