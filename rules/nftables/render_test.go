package nftables

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/rules/netlab"
	"sallyport/rules/nftables/trace"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

var update = flag.Bool("update", false, "rewrite testdata")

var testOptions = plan.Options{NodePortAddresses: prefixes("0.0.0.0/0 ::/0"), HashSeed: 0x5eed, VIPPorts: []uint16{443, 80}, Router: true}

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

// features is a snapshot with what Services can ask for, in both families.
func features() *model.Snapshot {
	web := scenario.Service("web", "198.51.100.10 2001:db8:5::10", "TCP 80 30001: 10.1.0.2:9376 10.1.0.3:9376 [2001:db8:1::2]:9376 [2001:db8:1::3]:9376",
		"UDP 80 30001: 10.1.0.2:53 [2001:db8:1::2]:53", "SCTP 80 30001: 10.1.0.2:38412 10.1.0.3:38412 [2001:db8:1::2]:38412", "SCTP 81 30002:")
	ranges := scenario.Service("ranges", "198.51.100.20 2001:db8:5::20", "TCP 80 30020: 10.1.0.4:80 [2001:db8:1::4]:80", "TCP 81 30021:")
	ranges.SourceRanges = &model.SourceRanges{Prefixes: prefixes("192.0.2.0/25 203.0.113.0/24")}
	ranges.ExternalIPs = addrs("203.0.113.20")
	sticky := scenario.Service("sticky", "198.51.100.30 2001:db8:5::30", "TCP 80 30030: 10.1.0.5:80 10.1.0.6:80 [2001:db8:1::5]:80", "UDP 53 30031:"+scenario.Destinations(12))
	sticky.Affinity = &model.Affinity{Timeout: 1500 * time.Millisecond, Exact: true}
	byClient := scenario.Service("by-client", "198.51.100.31", "TCP 80 0: 10.1.0.5:80 10.1.0.6:80")
	byClient.Affinity = &model.Affinity{Timeout: time.Hour}
	limited := scenario.Service("limited", "198.51.100.40 2001:db8:5::40", "TCP 80 30040: 10.1.0.7:80 10.1.0.8:80 [2001:db8:1::7]:80", "TCP 81 30041:")
	limited.Limits = &model.Limits{NewPerSecond: 20, PerClient: 100, Total: 10000}
	cluster := scenario.Service("cluster", "", "TCP 80 0: 10.1.0.9:80 [2001:db8:1::9]:80")
	cluster.ClusterIPs = addrs("10.96.0.10 fd00::10")
	weighted := scenario.Service("weighted", "198.51.100.50", "TCP 80 30050: 10.0.0.11:30050 10.0.0.12:30050")
	for i := range weighted.Ports[0].Destinations {
		weighted.Ports[0].Destinations[i].Weight = []uint16{3, 1}[i]
		weighted.Ports[0].Destinations[i].Reach = model.ReachNodes
	}
	s := scenario.Snapshot(web, ranges, sticky, byClient, limited, cluster, weighted)
	s.Nodes[0].PodCIDRs = append(s.Nodes[0].PodCIDRs, netip.MustParsePrefix("2001:db8:1::/64"))
	s.Nodes[0].InternalIPs = append(s.Nodes[0].InternalIPs, netip.MustParseAddr("2001:db8:b::11"))
	return s
}

// groupOptions have one group, with addresses of both families.
func groupOptions() plan.Options {
	o := testOptions
	addrRange := func(first, last string) plan.Range {
		return plan.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
	}
	o.Groups = []plan.Group{{Name: "a", SNATAddresses: []plan.Range{addrRange("10.0.0.100", "10.0.0.103"), addrRange("2001:db8:b::100", "2001:db8:b::100")},
		NodesGateway: addrs("10.0.0.1 2001:db8:b::1")}}
	return o
}

// keepOptions keep clients' addresses.
func keepOptions() plan.Options {
	o := groupOptions()
	o.ReturnPath = plan.ReturnEdge
	return o
}

func TestFeatures(t *testing.T) {
	rangesToo, keepAlone, alone, routed := testOptions, testOptions, testOptions, testOptions
	rangesToo.SourceRangesOnNodePorts = true
	keepAlone.ReturnPath, keepAlone.SNAT = plan.ReturnEdge, plan.SNATNever
	alone.Router = false
	routed.Routed = prefixes("10.1.0.0/24 2001:db8:1::/64")
	elsewhere := testOptions
	elsewhere.NodePortAddresses = prefixes("10.0.0.1/32")
	plain, groups, keep := testOptions, groupOptions(), keepOptions()
	for _, tt := range []struct {
		why  string
		o    plan.Options
		flow string
		want string
	}{
		{"VIP", plain, "192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"VIP from the edge", plain, "edge -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"NodePort", plain, "192.0.2.9 -> tcp 192.0.2.1:30001", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"NodePort from the edge", plain, "edge -> tcp 192.0.2.1:30001", "10.1.0.2:9376 10.1.0.3:9376 masq"},
		{"NodePort elsewhere", elsewhere, "192.0.2.9 -> tcp 192.0.2.1:30001", "not ours"},
		{"NodePort of another machine", plain, "192.0.2.9 -> tcp 203.0.113.7:30001", "not ours"},
		{"NodePort at loopback", plain, "edge -> tcp 127.0.0.1:30001", "not ours"},
		{"NodePort at a VIP", plain, "192.0.2.9 -> tcp 198.51.100.10:30001", "REJECT"},
		{"same port, UDP", plain, "192.0.2.9 -> udp 198.51.100.10:80", "10.1.0.2:53 masq"},
		{"sshd at a VIP", plain, "192.0.2.9 -> tcp 198.51.100.10:22", "REJECT"},
		{"L7 at a VIP", plain, "192.0.2.9 -> tcp 198.51.100.20:443", "ACCEPT"},
		{"ICMP at a VIP", plain, "192.0.2.9 -> icmp 198.51.100.10", "ACCEPT"},
		{"late packet to a VIP", plain, "INVALID 192.0.2.9 -> tcp 198.51.100.10:80", "DROP"},
		{"late packet from a pod", plain, "INVALID 10.1.0.2:9376 -> tcp 192.0.2.9:40000", "DROP"},
		{"late packet from a pod to the edge", plain, "INVALID 10.1.0.2:9376 -> tcp 192.0.2.1:40000", "DROP"},
		{"late packet from a node's NodePort", plain, "INVALID 10.0.0.11:30050 -> tcp 192.0.2.9:40000", "DROP"},
		{"late packet from a node's sshd", plain, "INVALID 10.0.0.11:22 -> tcp 192.0.2.9:40000", "not ours"},
		{"the edge's own sshd", plain, "192.0.2.9 -> tcp 192.0.2.1:22", "not ours"},
		{"others' traffic", plain, "192.0.2.9 -> tcp 203.0.113.9:443", "not ours"},
		{"others' traffic, alone", alone, "192.0.2.9 -> tcp 203.0.113.9:443", "DROP"},
		{"others' traffic, alone, known", alone, "ESTABLISHED 192.0.2.9 -> tcp 203.0.113.9:443", "not ours"},
		{"others' traffic to pods", routed, "192.0.2.9 -> tcp 10.1.0.2:9376", "DROP"},
		{"others' traffic to pods, IPv6", routed, "2001:db8:9::9 -> tcp [2001:db8:1::2]:9376", "DROP"},
		{"others' traffic beside pods", routed, "192.0.2.9 -> tcp 203.0.113.9:443", "not ours"},
		{"alone", alone, "192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 masq"},
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
		{"in a source range", plain, "192.0.2.9 -> tcp 198.51.100.20:80", "10.1.0.4:80 masq"},
		{"in another one", plain, "203.0.113.255 -> tcp 198.51.100.20:80", "10.1.0.4:80 masq"},
		{"outside the source ranges", plain, "192.0.2.129 -> tcp 198.51.100.20:80", "DROP"},
		{"outside the source ranges, no endpoints", plain, "192.0.2.129 -> tcp 198.51.100.20:81", "DROP"},
		{"in a source range, no endpoints", plain, "192.0.2.9 -> tcp 198.51.100.20:81", "REJECT"},
		{"outside the source ranges, port not served", plain, "192.0.2.129 -> tcp 198.51.100.20:82", "REJECT"},
		{"outside the source ranges, a node", plain, "10.0.0.11 -> tcp 198.51.100.20:80", "DROP"},
		{"family without source ranges", plain, "2001:db8:9::9 -> tcp [2001:db8:5::20]:80", "DROP"},
		{"source ranges, external IP", plain, "192.0.2.129 -> tcp 203.0.113.20:80", "10.1.0.4:80 masq"},
		{"source ranges, NodePort", plain, "192.0.2.129 -> tcp 192.0.2.1:30020", "10.1.0.4:80 masq"},
		{"source ranges on NodePorts", rangesToo, "192.0.2.129 -> tcp 192.0.2.1:30020", "DROP"},
		{"source ranges on NodePorts, inside", rangesToo, "192.0.2.9 -> tcp 192.0.2.1:30020", "10.1.0.4:80 masq"},
		{"by client", plain, "192.0.2.9 -> tcp 198.51.100.31:80", "10.1.0.5:80 10.1.0.6:80 masq"},
		{"kept by state, new client", plain, "192.0.2.9 -> tcp 198.51.100.30:80", "10.1.0.5:80 10.1.0.6:80 masq"},
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
		{"group", groups, "192.0.2.9 -> tcp 198.51.100.10:80", "10.1.0.2:9376 10.1.0.3:9376 snat 10.0.0.100-10.0.0.103"},
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
		t.Run(tt.why, func(t *testing.T) {
			tr := newTracer(t, plan.New(features(), familyOfFlow(tt.flow), tt.o))
			if got, _ := tr.Trace(tt.flow); got != tt.want {
				t.Errorf("%s\ngot  %s\nwant %s", tt.flow, got, tt.want)
			}
		})
	}
}

func familyOfFlow(flow string) plan.Family {
	if strings.Count(flow, ":") > 2 {
		return plan.IPv6
	}
	return plan.IPv4
}

func TestLimits(t *testing.T) {
	tr := newTracer(t, plan.New(features(), plan.IPv4, testOptions))
	for _, tr.Beyond = range []string{"rate", "connections"} {
		for flow, want := range map[string]string{
			"192.0.2.9 -> tcp 198.51.100.40:80": "DROP",
			"192.0.2.9 -> tcp 192.0.2.1:30040":  "DROP",
			"edge -> tcp 198.51.100.40:80":      "DROP",
			"192.0.2.9 -> tcp 198.51.100.40:81": "REJECT",
			"192.0.2.9 -> tcp 198.51.100.50:80": "10.0.0.11:30050 10.0.0.12:30050 masq",
			"192.0.2.9 -> icmp 198.51.100.40:0": "ACCEPT",
		} {
			if got, _ := tr.Trace(flow); got != want {
				t.Errorf("beyond %s, %s: got %s, want %s", tr.Beyond, flow, got, want)
			}
		}
	}
}

// TestSticky has clients connect again, also by another address of the service port and with another hash.
func TestSticky(t *testing.T) {
	tr := newTracer(t, plan.New(features(), plan.IPv4, testOptions))
	for slot, want := range []string{"10.1.0.5:80 masq", "10.1.0.6:80 masq"} {
		client := fmt.Sprintf("192.0.2.1%d", slot)
		for _, to := range []string{"tcp 198.51.100.30:80", "udp 198.51.100.30:53"} {
			got, timeout := tr.Connect(client+" -> "+to, uint32(slot))
			if timeout != "2s" || to[:3] == "tcp" && got != want {
				t.Fatalf("got %s for %s, want %s for 2s", got, timeout, want)
			}
		}
		for _, to := range []string{"198.51.100.30:80", "192.0.2.1:30030"} {
			if got, _ := tr.Trace(client + " -> tcp " + to); got != want {
				t.Errorf("again, to %s: got %s, want %s", to, got, want)
			}
		}
		if got, _ := tr.Trace(client + " -> udp 198.51.100.30:53"); len(strings.Fields(got)) != 2 {
			t.Errorf("again, by UDP: got %s, want one destination", got)
		}
	}
}

// TestExtremes has Services ask for more than nft takes: they must not keep it from taking the rest.
func TestExtremes(t *testing.T) {
	s := features()
	s.Services[2].Affinity.Timeout = math.MaxInt64
	s.Services[4].Limits = &model.Limits{NewPerSecond: math.MaxUint32, PerClient: math.MaxUint32, Total: math.MaxUint32}
	newKernel(t).apply(t, plan.New(s, plan.IPv4, testOptions))
}

// TestStickyForgets has the endpoint of a client go: it gets one of the others, and keeps that.
func TestStickyForgets(t *testing.T) {
	tr := newTracer(t, plan.New(features(), plan.IPv4, testOptions))
	const flow = "192.0.2.9 -> tcp 198.51.100.30:80"
	tr.Connect(flow, 0)
	s := features()
	s.Services[2].Ports[0].Destinations = s.Services[2].Ports[0].Destinations[1:]
	after := newTracer(t, plan.New(s, plan.IPv4, testOptions))
	maps.Copy(after.Elements(clients), tr.Elements(clients))
	if got, _ := after.Connect(flow, 0); got != "10.1.0.6:80 masq" {
		t.Fatalf("got %s, want the other endpoint", got)
	}
	maps.Copy(tr.Elements(clients), after.Elements(clients)) // the endpoint comes back
	if got, _ := tr.Trace(flow); got != "10.1.0.6:80 masq" {
		t.Errorf("got %s, want what it had last", got)
	}
}

// TestShare holds how many of the slots lead to each destination to its weight.
func TestShare(t *testing.T) {
	tr := newTracer(t, plan.New(features(), plan.IPv4, testOptions))
	got := map[string]int{}
	for slot := range uint32(4) {
		fate, _ := tr.Connect("192.0.2.9 -> tcp 198.51.100.50:80", slot)
		got[fate]++
	}
	if want := map[string]int{"10.0.0.11:30050 masq": 3, "10.0.0.12:30050 masq": 1}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestCost bounds the rules that a packet passes: their number does not depend on that of Services.
func TestCost(t *testing.T) {
	for _, services := range []int{1, 300} {
		tr := newTracer(t, plan.New(scenario.ManyServices(services, 20), plan.IPv4, testOptions))
		for flow, most := range map[string]int{
			"192.0.2.9 -> tcp 198.18.0.0:80":      12,
			"192.0.2.9 -> tcp 192.0.2.1:30000":    20,
			"192.0.2.9 -> tcp 203.0.113.9:443":    20,
			"192.0.2.9 -> tcp 198.18.0.0:30000":   20,
			"edge -> tcp 192.0.2.1:30000":         20,
			"INVALID 10.1.0.2 -> tcp 192.0.2.9:1": 3,
		} {
			if _, cost := tr.Trace(flow); cost > most {
				t.Errorf("%d services, %s: %d rules, want at most %d", services, flow, cost, most)
			}
		}
		if n := tr.Chains(); n > 20 {
			t.Errorf("%d services: %d chains", services, n)
		}
	}
}

// TestGolden holds tables to files, which the real nft has to take.
func TestGolden(t *testing.T) {
	nodes := testOptions
	nodes.Router, nodes.Routed = false, nil
	routed := keepOptions()
	routed.Routed = prefixes("10.1.0.0/24 2001:db8:1::/64")
	for _, tt := range []struct {
		name string
		s    *model.Snapshot
		o    plan.Options
	}{
		{"empty", &model.Snapshot{}, plan.Options{}},
		{"alone", scenario.Snapshot(scenario.Service("web", "198.51.100.10", "TCP 80 30001: 10.1.0.2:9376")), nodes},
		{"features", features(), testOptions},
		{"keep", features(), routed},
		{"groups", features(), groupOptions()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Text(plan.New(tt.s, plan.IPv4, tt.o), plan.New(tt.s, plan.IPv6, tt.o))
			golden(t, filepath.Join("testdata", tt.name+".nft"), got)
			netlab.In(t, netlab.Namespace(t), func() {
				cmd := exec.Command("nft", "--check", "--file", "-")
				cmd.Stdin = strings.NewReader(got)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("nft --check: %v\n%s", err, out)
				}
			})
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, []byte(got)) {
		t.Errorf("%s differs (-update accepts):\n%s", file, got)
	}
}

// newTracer traces the table of a plan on an edge that has the plan's addresses.
func newTracer(t testing.TB, p *plan.Plan) *trace.Tracer {
	t.Helper()
	local := slices.Clone(p.Held)
	for _, a := range p.Addresses {
		if a.Own {
			local = append(local, a.Addr)
		}
	}
	tr, err := trace.Read(Text(p), local...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}
