package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	words "sallyport/cmd/sallyport/explain"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// TestExplainSaysWhatTheRulesDo holds what `sallyport explain tcp://...` says to the rules, for random Services and
// connections.
func TestExplainSaysWhatTheRulesDo(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	fates := map[string]int{}
	for range 60 {
		s, addresses, ports := randomServices(r)
		at := all
		if r.IntN(2) == 0 {
			at = []netip.Prefix{netip.MustParsePrefix([]string{"192.0.2.0/24", "10.9.0.0/16", "2001:db8::/64"}[r.IntN(3)])}
		}
		tr := newTracer(t, renderFor(s, plan.Options{NodePortAddresses: at, HashSeed: r.Uint32(), Router: true}), vipsOf(s)...)
		o := words.Options{EdgeAddresses: []netip.Addr{netip.MustParseAddr(edgeIP)}, NodePortAddresses: at, Dataplane: "iptables"}
		for _, addr := range addresses {
			for range 20 {
				proto, port := []string{"tcp", "udp"}[r.IntN(2)], ports[r.IntN(len(ports))]
				flow := fmt.Sprintf("192.0.2.9 -> %s %s:%d", proto, addr, port)
				want, _ := tr.trace(flow)
				e, err := words.Explain(s, o, fmt.Sprintf("%s://%s:%d", proto, addr, port))
				if err != nil {
					t.Fatal(err)
				}
				if got := fateOf(e); got != want {
					t.Fatalf("%s, NodePorts at %v: explained as %q, the rules say %q\n%+v", flow, at, got, want, e)
				}
				word, _, _ := strings.Cut(want, ":")
				fates[word[:3]]++
			}
		}
	}
	for _, some := range []string{"REJ", "not", "10."} {
		if fates[some] < 100 {
			t.Errorf("of what was compared %v, %s too seldom", fates, some)
		}
	}
}

// TestExplainKnowsFeatures does so for Services that ask for anything, and for one client.
func TestExplainKnowsFeatures(t *testing.T) {
	fates := map[string]int{}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 9))
		s, f := randomSnapshot(r), plan.Families[r.IntN(2)]
		for i := range s.Services { // no API server gives a NodePort twice
			for k := range s.Services[i].Ports {
				if sp := &s.Services[i].Ports[k]; sp.NodePort != 0 {
					sp.NodePort = uint16(20000 + 200*i + k)
				}
			}
		}
		o := plan.Options{NodePortAddresses: prefixes("0.0.0.0/0 ::/0"), SourceRangesOnNodePorts: r.IntN(2) == 0, Router: true}
		tr := tracerOf(t, s, f, o)
		said := words.Options{EdgeAddresses: addrs(edgeIP + " " + edgeIPv6), NodePortAddresses: o.NodePortAddresses,
			SourceRangesOnNodePorts: o.SourceRangesOnNodePorts, Dataplane: "iptables"}
		for range 50 {
			from, proto, to := plainFlow(randomFlow(r, s, f))
			want, _ := tr.trace(fmt.Sprintf("%s -> %s %s", from, proto, to))
			e, err := words.Explain(s, said, fmt.Sprintf("%s://%s?from=%s", proto, to, from))
			if err != nil {
				t.Fatal(err)
			}
			if got := fateOf(e); got != want {
				t.Fatalf("seed %d, %s to %s://%s: explained as %q, the rules say %q\n%+v", seed, from, proto, to, got, want, e)
			}
			fates[kindOf(want)]++
		}
	}
	for _, kind := range []string{"REJECT", "DROP", "not ours", "masq"} {
		if fates[kind] < 15 {
			t.Errorf("of what was compared %v, %q too seldom", fates, kind)
		}
	}
}

// plainFlow takes a flow apart, without what there is no explanation of.
func plainFlow(flow string) (from, proto, to string) {
	f := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(flow, "INVALID "), "MIDSTREAM "))
	from, proto, to = strings.TrimSuffix(strings.TrimPrefix(f[0], "["), "]:9376"), f[2], f[3]
	if from == "edge" {
		from = "192.0.2.77"
		if strings.HasPrefix(to, "[") {
			from = "2001:db8:9::77"
		}
	}
	if base, zero := strings.CutSuffix(to, ":0"); zero {
		to = base + ":1"
	}
	if strings.Contains(proto, "icmp") {
		proto = "tcp"
	}
	return from, proto, to
}

// fateOf is an explanation in the words of trace.
func fateOf(e words.Explanation) string {
	switch e.Verdict {
	case words.Refused:
		return "REJECT"
	case words.Dropped:
		return "DROP"
	case words.None:
		return "not ours"
	}
	var to []string
	for _, d := range e.Backends[0].Destinations {
		to = append(to, d.Address.String())
	}
	return sorted(strings.Join(to, " ")) + " masq"
}

// randomServices makes some Services, and what is worth a connection: addresses and ports.
func randomServices(r *rand.Rand) (s *model.Snapshot, addresses []string, ports []int) {
	s, addresses, ports = scenario.Snapshot(), []string{edgeIP, "203.0.113.9"}, []int{22, 53, 80, 30999}
	for i := range 1 + r.IntN(8) {
		vip := ""
		if r.IntN(3) > 0 {
			vip = fmt.Sprintf("198.51.100.%d", 10+i)
			addresses = append(addresses, vip)
		}
		var list []string
		for k, port := range []int{53, 80, 8000 + i} {
			nodePort := 0
			if r.IntN(3) > 0 {
				nodePort = 30000 + 10*i + k
				ports = append(ports, nodePort)
			}
			list = append(list, fmt.Sprintf("%s %d %d:%s", []string{"TCP", "UDP"}[r.IntN(2)], port, nodePort, scenario.Destinations([]int{0, 1, 3, 12}[r.IntN(4)])))
			ports = append(ports, port)
		}
		s.Services = append(s.Services, scenario.Service(fmt.Sprint("s", i), vip, list...))
	}
	return s, addresses, ports
}
