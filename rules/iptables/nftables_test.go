package iptables

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"sallyport/rules/nftables"
	"sallyport/rules/nftables/trace"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// TestAgreesWithNFTables compares the trees with the maps of nftables, over random services, options and packets.
func TestAgreesWithNFTables(t *testing.T) {
	fates := map[string]int{}
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 2))
		s, o, f := randomSnapshot(r), randomOptions(r), plan.Families[r.IntN(2)]
		o.Router, o.Routed = r.IntN(2) == 0, prefixes("10.1.0.0/24 2001:db8:1::/64")
		trees := tracerOf(t, s, f, o)
		maps, err := trace.Read(nftables.Text(plan.New(s, f, o)), trees.local...)
		if err != nil {
			t.Fatalf("seed %d, %v: %v", seed, f, err)
		}
		if r.IntN(4) == 0 {
			trees.beyond, maps.Beyond = "connections", "connections"
		}
		for range 100 {
			flow := randomFlow(r, s, f)
			if r.IntN(10) == 0 {
				flow = transitFlow(r, f)
			}
			want, _ := trees.trace(flow)
			if got, _ := maps.Trace(flow); got != want {
				t.Fatalf("seed %d, %v: %s\niptables %s\nnftables %s", seed, f, flow, want, got)
			}
			fates[kindOf(want)]++
		}
	}
	for _, kind := range []string{"REJECT", "DROP", "ACCEPT", "not ours", "masq", "snat", "kept"} {
		if fates[kind] < 50 {
			t.Errorf("of what was compared %v, %q too seldom", fates, kind)
		}
	}
}

// transitFlow is none of a Service: it passes through the edge, from or to pods and nodes.
func transitFlow(r *rand.Rand, f plan.Family) string {
	ends := map[plan.Family][]string{
		plan.IPv4: {"192.0.2.9:40000", "203.0.113.200:443", "10.1.0.2:9376", "10.0.0.11:22", "10.0.0.11:30001"},
		plan.IPv6: {"[2001:db8:9::9]:40000", "[2001:db8:99::9]:443", "[2001:db8:1::2]:9376", "[2001:db8:b::11]:22"},
	}[f]
	state := []string{"", "ESTABLISHED ", "INVALID ", "MIDSTREAM ", "UNTRACKED "}[r.IntN(5)]
	proto := []string{"tcp", "udp", "sctp", dialectOf(f).icmp}[r.IntN(4)]
	return fmt.Sprintf("%s%s -> %s %s", state, ends[r.IntN(len(ends))], proto, ends[r.IntN(len(ends))])
}

// TestClusters has Services of the same name in two clusters: they share neither source ranges nor endpoints.
func TestClusters(t *testing.T) {
	service := func(cluster, vip, pods string) model.Service {
		svc := scenario.Service("same", vip, "TCP 80 0:"+pods)
		svc.Ref.Cluster = cluster
		svc.Affinity = &model.Affinity{Timeout: time.Hour, Exact: true}
		svc.SourceRanges = &model.SourceRanges{}
		return svc
	}
	a, b := service("a", "198.51.100.1", " 10.1.0.2:80"), service("b", "198.51.100.2", " 10.1.0.3:80")
	for i := range 10 { // more than are inline
		a.SourceRanges.Prefixes = append(a.SourceRanges.Prefixes, prefixes(fmt.Sprintf("10.1.%d.0/24", i))...)
		b.SourceRanges.Prefixes = append(b.SourceRanges.Prefixes, prefixes(fmt.Sprintf("10.2.%d.0/24", i))...)
	}
	for flow, want := range map[string]string{
		"10.1.1.9 -> tcp 198.51.100.1:80": "10.1.0.2:80 masq",
		"10.2.1.9 -> tcp 198.51.100.1:80": "DROP",
		"10.1.1.9 -> tcp 198.51.100.2:80": "DROP",
		"10.2.1.9 -> tcp 198.51.100.2:80": "10.1.0.3:80 masq",
	} {
		if got := fateIn(t, scenario.Snapshot(a, b), everywhere(), flow); got != want {
			t.Errorf("%s: got %s, want %s", flow, got, want)
		}
	}
}
