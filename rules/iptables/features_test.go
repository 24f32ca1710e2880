package iptables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

func prefixes(s string) (out []netip.Prefix) {
	for p := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(s string) (out []netip.Addr) {
	for a := range strings.FieldsSeq(s) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func addrRange(first, last string) plan.Range {
	return plan.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

// features is a snapshot with what Services can ask for, in both families.
func features() *model.Snapshot {
	web := scenario.Service("web", "198.51.100.10 2001:db8:5::10", "TCP 80 30001: 10.1.0.2:9376 10.1.0.3:9376 [2001:db8:1::2]:9376 [2001:db8:1::3]:9376",
		"UDP 80 30001: 10.1.0.2:53 [2001:db8:1::2]:53", "SCTP 80 30001: 10.1.0.2:38412 10.1.0.3:38412 [2001:db8:1::2]:38412", "SCTP 81 30002:")
	ranges := scenario.Service("ranges", "198.51.100.20 2001:db8:5::20", "TCP 80 30020: 10.1.0.4:80 [2001:db8:1::4]:80", "TCP 81 30021:")
	ranges.SourceRanges = &model.SourceRanges{Prefixes: prefixes("192.0.2.0/25 203.0.113.0/24")}
	ranges.ExternalIPs = addrs("203.0.113.20")
	sticky := scenario.Service("sticky", "198.51.100.30 2001:db8:5::30", "TCP 80 30030: 10.1.0.5:80 10.1.0.6:80 [2001:db8:1::5]:80", "UDP 53 30031:"+scenario.Destinations(12))
	sticky.Affinity = &model.Affinity{Timeout: 1500 * time.Millisecond, Exact: true}
	limited := scenario.Service("limited", "198.51.100.40 2001:db8:5::40", "TCP 80 30040: 10.1.0.7:80 10.1.0.8:80 [2001:db8:1::7]:80", "TCP 81 30041:")
	limited.Limits = &model.Limits{NewPerSecond: 20, PerClient: 100, Total: 10000}
	cluster := scenario.Service("cluster", "", "TCP 80 0: 10.1.0.9:80 [2001:db8:1::9]:80")
	cluster.ClusterIPs = addrs("10.96.0.10 fd00::10")
	weighted := scenario.Service("weighted", "198.51.100.50", "TCP 80 30050: 10.0.0.11:30050 10.0.0.12:30050")
	for i := range weighted.Ports[0].Destinations {
		weighted.Ports[0].Destinations[i].Weight = []uint16{3, 1}[i]
	}
	s := scenario.Snapshot(web, ranges, sticky, limited, cluster, weighted)
	s.Nodes[0].PodCIDRs = append(s.Nodes[0].PodCIDRs, netip.MustParsePrefix("2001:db8:1::/64"))
	s.Nodes[0].InternalIPs = append(s.Nodes[0].InternalIPs, netip.MustParseAddr("2001:db8:b::11"))
	return s
}

// groupOptions have one group, with addresses of both families.
func groupOptions() plan.Options {
	o := everywhere()
	o.Groups = []plan.Group{{Name: "a", SNATAddresses: []plan.Range{addrRange("10.0.0.100", "10.0.0.103"), addrRange("2001:db8:b::100", "2001:db8:b::100")},
		NodesGateway: addrs("10.0.0.1 2001:db8:b::1")}}
	return o
}

// A flowTest is what becomes of a flow.
type flowTest struct {
	why  string
	o    plan.Options
	flow string
	want string
}

func (tt flowTest) run(t *testing.T, s *model.Snapshot) {
	if got := fateIn(t, s, tt.o, tt.flow); got != tt.want {
		t.Errorf("%s\ngot  %s\nwant %s", tt.flow, got, tt.want)
	}
}

// everywhere serves NodePorts at all addresses.
func everywhere() plan.Options {
	o := testOptions
	o.NodePortAddresses = prefixes("0.0.0.0/0 ::/0")
	return o
}

func TestFeatures(t *testing.T) {
	plain, rangesToo, groups := everywhere(), everywhere(), groupOptions()
	rangesToo.SourceRangesOnNodePorts = true
	for _, tt := range []flowTest{
		{"IPv6 VIP", plain, "2001:db8:9::9 -> tcp [2001:db8:5::10]:80", "[2001:db8:1::2]:9376 [2001:db8:1::3]:9376 masq"},
		{"IPv6 VIP from the edge", plain, "edge -> tcp [2001:db8:5::10]:80", "[2001:db8:1::2]:9376 [2001:db8:1::3]:9376 masq"},
		{"IPv6 NodePort", plain, "2001:db8:9::9 -> tcp [2001:db8:e::1]:30001", "[2001:db8:1::2]:9376 [2001:db8:1::3]:9376 masq"},
		{"IPv6 NodePort at loopback", plain, "edge -> tcp [::1]:30001", "not ours"},
		{"IPv6 NodePort at a VIP", plain, "2001:db8:9::9 -> tcp [2001:db8:5::10]:30001", "REJECT"},
		{"IPv6, no destinations of the family", plain, "2001:db8:9::9 -> udp [2001:db8:5::30]:53", "REJECT"},
		{"IPv6, sshd at a VIP", plain, "2001:db8:9::9 -> tcp [2001:db8:5::10]:22", "REJECT"},
		{"IPv6, L7 at a VIP", plain, "2001:db8:9::9 -> tcp [2001:db8:5::10]:443", "ACCEPT"},
		{"IPv6, ICMP at a VIP", plain, "2001:db8:9::9 -> ipv6-icmp 2001:db8:5::10", "ACCEPT"},
		{"IPv6, ICMP without state at a VIP", plain, "UNTRACKED 2001:db8:9::9 -> ipv6-icmp 2001:db8:5::10", "ACCEPT"},
		{"IPv6, ICMP from a pod that conntrack cannot place", plain, "INVALID 2001:db8:1::2 -> ipv6-icmp 2001:db8:9::9", "not ours"},
		{"IPv6, late packet from a pod", plain, "INVALID 2001:db8:1::2 -> tcp [2001:db8:9::9]:40000", "DROP"},
		{"SCTP", plain, "192.0.2.9 -> sctp 198.51.100.10:80", "10.1.0.2:38412 10.1.0.3:38412 masq"},
		{"SCTP, NodePort", plain, "192.0.2.9 -> sctp 192.0.2.1:30001", "10.1.0.2:38412 10.1.0.3:38412 masq"},
		{"SCTP, IPv6", plain, "2001:db8:9::9 -> sctp [2001:db8:5::10]:80", "[2001:db8:1::2]:38412 masq"},
		{"SCTP without endpoints", plain, "192.0.2.9 -> sctp 198.51.100.10:81", "REJECT"},
		{"same port, UDP", plain, "192.0.2.9 -> udp 198.51.100.10:80", "10.1.0.2:53 masq"},
		{"in a source range", plain, "192.0.2.9 -> tcp 198.51.100.20:80", "10.1.0.4:80 masq"},
		{"in another one", plain, "203.0.113.255 -> tcp 198.51.100.20:80", "10.1.0.4:80 masq"},
		{"outside the source ranges", plain, "192.0.2.129 -> tcp 198.51.100.20:80", "DROP"},
		{"outside the source ranges, no endpoints", plain, "192.0.2.129 -> tcp 198.51.100.20:81", "DROP"},
		{"in a source range, no endpoints", plain, "192.0.2.9 -> tcp 198.51.100.20:81", "REJECT"},
		{"outside the source ranges, port not served", plain, "192.0.2.129 -> tcp 198.51.100.20:82", "REJECT"},
		{"outside the source ranges, from the edge", plain, "10.0.0.1 -> tcp 198.51.100.20:80", "DROP"},
		{"family without source ranges", plain, "2001:db8:9::9 -> tcp [2001:db8:5::20]:80", "DROP"},
		{"source ranges, external IP", plain, "192.0.2.129 -> tcp 203.0.113.20:80", "10.1.0.4:80 masq"},
		{"source ranges, NodePort", plain, "192.0.2.129 -> tcp 192.0.2.1:30020", "10.1.0.4:80 masq"},
		{"source ranges on NodePorts", rangesToo, "192.0.2.129 -> tcp 192.0.2.1:30020", "DROP"},
		{"source ranges on NodePorts, inside", rangesToo, "192.0.2.9 -> tcp 192.0.2.1:30020", "10.1.0.4:80 masq"},
		{"kept by state, new client", plain, "192.0.2.9 -> tcp 198.51.100.30:80", "10.1.0.5:80 10.1.0.6:80 masq"},
		{"kept by state, many", plain, "192.0.2.9 -> udp 198.51.100.30:53", sorted(strings.TrimSpace(scenario.Destinations(12))) + " masq"},
		{"kept by state, IPv6", plain, "2001:db8:9::9 -> tcp [2001:db8:5::30]:80", "[2001:db8:1::5]:80 masq"},
		{"limits not reached", plain, "192.0.2.9 -> tcp 198.51.100.40:80", "10.1.0.7:80 10.1.0.8:80 masq"},
		{"limits not reached, NodePort", plain, "192.0.2.9 -> tcp 192.0.2.1:30040", "10.1.0.7:80 10.1.0.8:80 masq"},
		{"limits, no endpoints", plain, "192.0.2.9 -> tcp 198.51.100.40:81", "REJECT"},
		{"cluster IP", plain, "192.0.2.9 -> tcp 10.96.0.10:80", "10.1.0.9:80 masq"},
		{"cluster IP from the edge", plain, "edge -> tcp 10.96.0.10:80", "10.1.0.9:80 masq"},
		{"cluster IP, port not served", plain, "192.0.2.9 -> tcp 10.96.0.10:81", "REJECT"},
		{"cluster IP, port not served, from the edge", plain, "edge -> tcp 10.96.0.10:81", "REJECT"},
		{"cluster IP, IPv6", plain, "2001:db8:9::9 -> tcp [fd00::10]:80", "[2001:db8:1::9]:80 masq"},
		{"cluster IP, with groups", groups, "192.0.2.9 -> tcp 10.96.0.10:80", "10.1.0.9:80 masq"},
		{"weights", plain, "192.0.2.9 -> tcp 198.51.100.50:80", "10.0.0.11:30050 10.0.0.12:30050 masq"},
	} {
		t.Run(tt.why, func(t *testing.T) { tt.run(t, features()) })
	}
}

// TestSourceAddresses follows what replaces the source addresses of connections, and what guards the replacements.
func TestSourceAddresses(t *testing.T) {
	plain, groups, keep, keepAlone := everywhere(), groupOptions(), groupOptions(), everywhere()
	keep.ReturnPath = plan.ReturnEdge
	keepAlone.ReturnPath, keepAlone.SNAT = plan.ReturnEdge, plan.SNATNever
	for _, tt := range []flowTest{
		{"group", groups, "192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 snat 10.0.0.100-10.0.0.103"},
		{"group, chain of its own", groups, "192.0.2.9 -> tcp 198.51.100.40:80", "10.1.0.7:80 10.1.0.8:80 snat 10.0.0.100-10.0.0.103"},
		{"group, tree of slots", groups, "192.0.2.9 -> udp 198.51.100.30:53", sorted(strings.TrimSpace(scenario.Destinations(12))) + " snat 10.0.0.100-10.0.0.103"},
		{"group, IPv6", groups, "2001:db8:9::9 -> tcp [2001:db8:5::40]:80", "[2001:db8:1::7]:80 snat 2001:db8:b::100"},
		{"group, from the edge", groups, "edge -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"group, NodePort", groups, "192.0.2.9 -> tcp 192.0.2.1:30001", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"group, middle of a connection", groups, "MIDSTREAM 192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 snat 10.0.0.100-10.0.0.103"},
		{"held, middle of a connection", groups, "MIDSTREAM 10.1.0.2:9376 -> tcp 10.0.0.101:40000", "DROP"},
		{"held, port that is a NodePort", groups, "MIDSTREAM 10.1.0.2:9376 -> tcp 10.0.0.101:30001", "DROP"},
		{"held, new", groups, "192.0.2.9 -> tcp 10.0.0.101:22", "DROP"},
		{"held, UDP", groups, "10.1.0.2:53 -> udp 10.0.0.103:40000", "DROP"},
		{"held, ping", groups, "10.1.0.2 -> icmp 10.0.0.103", "ACCEPT"},
		{"held, known", groups, "ESTABLISHED 10.1.0.2:9376 -> tcp 10.0.0.101:40000", "not ours"},
		{"held, IPv6", groups, "MIDSTREAM [2001:db8:1::2]:9376 -> tcp [2001:db8:b::100]:40000", "DROP"},
		{"held, the nodes' gateway", groups, "192.0.2.9 -> tcp 10.0.0.1:22", "DROP"},
		{"source kept", keep, "192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376"},
		{"source kept, IPv6", keep, "2001:db8:9::9 -> tcp [2001:db8:5::10]:80", "[2001:db8:1::2]:9376 [2001:db8:1::3]:9376"},
		{"source kept, but of a pod", keep, "10.1.0.2 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 snat 10.0.0.100-10.0.0.103"},
		{"source kept, but of a node", keep, "10.0.0.11 -> tcp 192.0.2.1:30001", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"source kept, but of the edge", keep, "edge -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"source kept, answer without state", keep, "MIDSTREAM 10.1.0.2:9376 -> tcp 192.0.2.9:40000", "DROP"},
		{"source kept, new connection of a pod", keep, "10.1.0.2 -> tcp 192.0.2.9:443", "not ours"},
		{"source kept, middle of another's connection", keep, "MIDSTREAM 192.0.2.77 -> tcp 203.0.113.5:443", "not ours"},
		{"source kept, middle of a connection", keep, "MIDSTREAM 192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376"},
		{"source kept, no groups", keepAlone, "192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376"},
		{"source kept, no groups, of a pod", keepAlone, "10.1.0.2 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"source replaced, answer without state, to others", plain, "MIDSTREAM 10.1.0.2:9376 -> tcp 192.0.2.9:40000", "not ours"},
	} {
		t.Run(tt.why, func(t *testing.T) { tt.run(t, features()) })
	}
}

// familyOf is the family of a flow.
func familyOf(flow string) plan.Family {
	if strings.Count(flow, ":") > 2 {
		return plan.IPv6
	}
	return plan.IPv4
}

// tracerOf traces the rules of one family.
func tracerOf(t testing.TB, s *model.Snapshot, f plan.Family, o plan.Options) *tracer {
	t.Helper()
	p := plan.New(s, f, o)
	local := p.Held
	for _, a := range p.Addresses {
		if a.Own {
			local = append(local, a.Addr)
		}
	}
	return newTracer(t, Render(p), local...)
}

func fateIn(t testing.TB, s *model.Snapshot, o plan.Options, flow string) string {
	t.Helper()
	fate, _ := tracerOf(t, s, familyOf(flow), o).trace(flow)
	return fate
}

func TestLimits(t *testing.T) {
	tr := tracerOf(t, features(), plan.IPv4, testOptions)
	for _, beyond := range []string{"rate", "connections"} {
		tr.beyond = beyond
		for flow, want := range map[string]string{
			"192.0.2.9 -> tcp 198.51.100.40:80":   "DROP",
			"192.0.2.9 -> tcp 192.0.2.1:30040":    "DROP",
			"edge -> tcp 198.51.100.40:80":        "DROP",
			"192.0.2.9 -> tcp 198.51.100.40:81":   "REJECT",
			"192.0.2.9 -> tcp 198.51.100.50:80":   "10.0.0.11:30050 10.0.0.12:30050 masq",
			"192.0.2.9 -> icmp 198.51.100.40:0":   "ACCEPT",
			"192.0.2.9 -> tcp 198.51.100.40:8080": "REJECT",
		} {
			if got, _ := tr.trace(flow); got != want {
				t.Errorf("beyond %s, %s: got %s, want %s", beyond, flow, got, want)
			}
		}
	}
}

// TestSticky has a client in each of the sets in turn: it gets the set's destination.
func TestSticky(t *testing.T) {
	for f, vip := range map[plan.Family]string{plan.IPv4: "198.51.100.30", plan.IPv6: "[2001:db8:5::30]"} {
		tr := tracerOf(t, features(), f, testOptions)
		sets := Render(plan.New(features(), f, testOptions)).Sets
		tcp, udp := map[string]bool{}, map[string]bool{}
		for _, s := range sets {
			if len(s.Name) != 31 || s.Family != f || s.Timeout != 1500*time.Millisecond {
				t.Errorf("bad set %+v", s)
			}
			tr.member = s.Name
			client := map[plan.Family]string{plan.IPv4: "192.0.2.9", plan.IPv6: "2001:db8:9::9"}[f]
			if fate, _ := tr.trace(fmt.Sprintf("%s -> tcp %s:80", client, vip)); len(strings.Fields(fate)) == 2 {
				tcp[fate] = true
			}
			if fate, _ := tr.trace(fmt.Sprintf("%s -> udp %s:53", client, vip)); len(strings.Fields(fate)) == 2 && fate != "REJECT" {
				udp[fate] = true
			}
		}
		want := map[plan.Family][3]int{plan.IPv4: {14, 2, 12}, plan.IPv6: {1, 1, 0}}[f]
		if got := [3]int{len(sets), len(tcp), len(udp)}; got != want {
			t.Errorf("%v: sets, and destinations of TCP and UDP that a client is kept with: got %v, want %v", f, got, want)
		}
	}
}

// TestStickyTimeout holds what the sets are told to what the Service asks for, in whole seconds.
func TestStickyTimeout(t *testing.T) {
	text := string(Render(plan.New(features(), plan.IPv4, testOptions)).Tables[1].Change(nil, nil, nil))
	for _, table := range Render(plan.New(features(), plan.IPv4, testOptions)).Tables {
		text += string(table.Change(table.Chains, nil, nil))
	}
	if n := strings.Count(text, "src --exist --timeout 2\n"); n != 14 {
		t.Errorf("%d rules add a client for 2 s, want 14\n%s", n, text)
	}
	if strings.Contains(text, "--hmark-tuple src,sport --hmark-mod 12") {
		t.Error("the port of a client has a say in its destination")
	}
}

// TestShare holds how many of the slots lead to each destination to its weight.
func TestShare(t *testing.T) {
	tr := tracerOf(t, features(), plan.IPv4, testOptions)
	p, _ := parseFlow("192.0.2.9 -> tcp 198.51.100.50:80")
	p.local = tr.local
	got := map[string]int{}
	for p.slot = range 4 {
		q := p
		got[tr.route(&q, false)]++
	}
	if want := map[string]int{"10.0.0.11:30050 masq": 3, "10.0.0.12:30050 masq": 1}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestManySourceRanges bounds what 10,000 ranges cost each new connection.
func TestManySourceRanges(t *testing.T) {
	s := scenario.Snapshot(scenario.Service("web", "198.51.100.10", "TCP 80 0: 10.1.0.2:80", "TCP 81 0: 10.1.0.2:81"))
	ranges := &model.SourceRanges{}
	for i := range 10000 {
		ranges.Prefixes = append(ranges.Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i / 64), byte(i % 64 * 4), 0}), 23))
	}
	s.Services[0].SourceRanges = ranges
	tr := tracerOf(t, s, plan.IPv4, testOptions)
	for i := 0; i < 10000; i += 37 {
		in := ranges.Prefixes[i].Addr().Next()
		out := netip.AddrFrom4([4]byte{20, in.As4()[1], in.As4()[2] + 2, 9})
		for from, want := range map[netip.Addr]string{in: "10.1.0.2:81 masq", out: "DROP"} {
			if got, cost := tr.trace(fmt.Sprintf("%s -> tcp 198.51.100.10:81", from)); got != want || cost > 160 {
				t.Fatalf("%s: got %s after %d rules, want %s after at most 160", from, got, cost, want)
			}
		}
	}
}

// TestSourceRangesChange counts what a change of source ranges writes anew.
func TestSourceRangesChange(t *testing.T) {
	before := Render(plan.New(features(), plan.IPv4, testOptions))
	s := features()
	s.Services[1].SourceRanges.Prefixes = prefixes("192.0.2.0/24")
	after := Render(plan.New(s, plan.IPv4, testOptions))
	for i, table := range after.Tables {
		write, gone := table.Since(before.Tables[i])
		if table.Name == "filter" && len(write) > 0 || len(write) > 1 || len(gone) != 0 {
			t.Errorf("table %s: %d chains written, %d removed", table.Name, len(write), len(gone))
		}
	}
}
