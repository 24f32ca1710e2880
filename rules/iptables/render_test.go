package iptables

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var testOptions = plan.Options{NodePortAddresses: all, HashSeed: 0x5eed, VIPPorts: []uint16{443, 80}, Router: true}

// vipsOf lists what the edge has on its link for VIPs.
func vipsOf(s *model.Snapshot) (vips []netip.Addr) {
	for _, svc := range s.Services {
		vips = append(vips, svc.VIPs...)
	}
	return vips
}

// all is every address of the edge.
var all = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}

// renderFor renders the rules of IPv4.
func renderFor(s *model.Snapshot, o plan.Options) Ruleset { return Render(plan.New(s, plan.IPv4, o)) }

// flowServices are what TestNodePorts, TestVIPs and TestForwarding send packets to.
func flowServices() *model.Snapshot {
	web := scenario.Service("web", "198.51.100.10", "TCP 80 30001: 10.1.0.2:9376 10.1.0.3:9376 10.1.0.4:9376", "TCP 8443 0: 10.1.0.2:443")
	dns := scenario.Service("dns", "198.51.100.10 198.51.100.200", "UDP 53 30053: 10.1.0.2:53", "TCP 53 30053: 10.1.0.3:53")
	empty := scenario.Service("empty", "198.51.100.11", "TCP 80 30002:", "UDP 80 30002:")
	big := scenario.Service("big", "198.51.100.12", "TCP 80 30003:"+scenario.Destinations(20))
	first := scenario.Service("a-first", "", "TCP 80 30007: 10.1.0.2:1")
	second := scenario.Service("b-second", "", "TCP 80 30007: 10.1.0.2:2")
	v6 := scenario.Service("v6", "2001:db8::1", "TCP 80 30006: [2001:db8:1::2]:80")
	return scenario.Snapshot(first, second, big, dns, empty, v6, web)
}

// Where connections to some of flowServices go.
const three = "10.1.0.2:9376 10.1.0.3:9376 10.1.0.4:9376 masq"

var twenty = sorted(scenario.Destinations(20)) + " masq"

// at are testOptions with NodePorts at these addresses.
func at(networks string) plan.Options {
	o := testOptions
	o.NodePortAddresses = prefixes(networks)
	return o
}

func TestNodePorts(t *testing.T) {
	onlyOne, elsewhere, onlyV6 := at("192.0.2.0/24 2001:db8::/64"), at("10.0.0.1/32"), at("2001:db8::/64")
	for _, tt := range []flowTest{
		{"NodePort", testOptions, "192.0.2.9 -> tcp 192.0.2.1:30001", three},
		{"NodePort from the edge", testOptions, "edge -> tcp 192.0.2.1:30001", three},
		{"NodePort, UDP", testOptions, "192.0.2.9 -> udp 192.0.2.1:30053", "10.1.0.2:53 masq"},
		{"same NodePort, TCP", testOptions, "192.0.2.9 -> tcp 192.0.2.1:30053", "10.1.0.3:53 masq"},
		{"NodePort of the other protocol", testOptions, "192.0.2.9 -> udp 192.0.2.1:30001", "not ours"},
		{"port between NodePorts", testOptions, "192.0.2.9 -> tcp 192.0.2.1:30005", "not ours"},
		{"NodePort of a Service without IPv4 endpoints", testOptions, "192.0.2.9 -> tcp 192.0.2.1:30006", "REJECT"},
		{"NodePort at loopback", testOptions, "edge -> tcp 127.0.0.1:30001", "not ours"},
		{"NodePort of another machine", testOptions, "192.0.2.9 -> tcp 203.0.113.1:30001", "not ours"},
		{"NodePort at a VIP", testOptions, "192.0.2.9 -> tcp 198.51.100.10:30001", "REJECT"},
		{"NodePort without endpoints", testOptions, "192.0.2.9 -> tcp 192.0.2.1:30002", "REJECT"},
		{"NodePort without endpoints, UDP", testOptions, "192.0.2.9 -> udp 192.0.2.1:30002", "REJECT"},
		{"NodePort without endpoints, from the edge", testOptions, "edge -> tcp 192.0.2.1:30002", "REJECT"},
		{"NodePort with many endpoints", testOptions, "192.0.2.9 -> tcp 192.0.2.1:30003", twenty},
		{"NodePort claimed twice: the first has it", testOptions, "192.0.2.9 -> tcp 192.0.2.1:30007", "10.1.0.2:1 masq"},
		{"NodePort address in the network given", onlyOne, "192.0.2.9 -> tcp 192.0.2.1:30001", three},
		{"NodePort address outside the network given", elsewhere, "192.0.2.9 -> tcp 192.0.2.1:30001", "not ours"},
		{"NodePort, not local, in the network given", onlyOne, "192.0.2.9 -> tcp 192.0.2.77:30001", "not ours"},
		{"NodePorts at addresses of the other family", onlyV6, "192.0.2.9 -> tcp 192.0.2.1:30001", "not ours"},
	} {
		t.Run(tt.why, func(t *testing.T) { tt.run(t, flowServices()) })
	}
}

func TestVIPs(t *testing.T) {
	for _, tt := range []flowTest{
		{"VIP", testOptions, "192.0.2.9 -> tcp 198.51.100.10:80", three},
		{"VIP from the edge", testOptions, "edge -> tcp 198.51.100.10:80", three},
		{"VIP from a pod", testOptions, "10.1.0.2 -> tcp 198.51.100.10:80", three},
		{"VIP, second port", testOptions, "192.0.2.9 -> tcp 198.51.100.10:8443", "10.1.0.2:443 masq"},
		{"VIP shared by two Services", testOptions, "192.0.2.9 -> udp 198.51.100.10:53", "10.1.0.2:53 masq"},
		{"second VIP of a Service", testOptions, "192.0.2.9 -> udp 198.51.100.200:53", "10.1.0.2:53 masq"},
		{"VIP without endpoints", testOptions, "192.0.2.9 -> tcp 198.51.100.11:80", "REJECT"},
		{"VIP with many endpoints", testOptions, "192.0.2.9 -> tcp 198.51.100.12:80", twenty},
		{"sshd at a VIP", testOptions, "192.0.2.9 -> tcp 198.51.100.10:22", "REJECT"},
		{"sshd at a VIP, from the edge", testOptions, "edge -> tcp 198.51.100.10:22", "REJECT"},
		{"sshd of the edge", testOptions, "192.0.2.9 -> tcp 192.0.2.1:22", "not ours"},
		{"ping a VIP", testOptions, "192.0.2.9 -> icmp 198.51.100.10", "ACCEPT"},
		{"L7 at a VIP", testOptions, "192.0.2.9 -> tcp 198.51.100.10:443", "ACCEPT"},
		{"L7 at a VIP goes on", testOptions, "ESTABLISHED 192.0.2.9 -> tcp 198.51.100.10:443", "not ours"},
		{"address between VIPs", testOptions, "192.0.2.9 -> tcp 198.51.100.13:80", "not ours"},
	} {
		t.Run(tt.why, func(t *testing.T) { tt.run(t, flowServices()) })
	}
}

// TestForwarding follows what is not for the edge, and what comes too late.
func TestForwarding(t *testing.T) {
	alone, closed, otherMark := testOptions, testOptions, testOptions
	alone.Router = false
	closed.Routed = prefixes("10.1.0.0/24")
	otherMark.Mark = 0x7f
	for _, tt := range []flowTest{
		{"late packet to a VIP", testOptions, "INVALID 192.0.2.9 -> tcp 198.51.100.10:80", "DROP"},
		{"late packet from a pod, to the edge", testOptions, "INVALID 10.1.0.2 -> tcp 192.0.2.1:40000", "DROP"},
		{"late packet from a pod, to a client", testOptions, "INVALID 10.1.0.2 -> tcp 192.0.2.9:40000", "DROP"},
		{"late packet of others", testOptions, "INVALID 203.0.113.5 -> tcp 192.0.2.9:40000", "not ours"},
		{"late packet from a node in reach pods", testOptions, "INVALID 10.0.0.11:30001 -> tcp 192.0.2.1:40000", "not ours"},
		{"forwarded for others", testOptions, "192.0.2.9 -> tcp 203.0.113.1:80", "not ours"},
		{"pod from outside, by our route", closed, "192.0.2.9 -> tcp 10.1.0.2:9376", "DROP"},
		{"pod from outside, by the route of others", closed, "192.0.2.9 -> tcp 10.1.1.2:9376", "not ours"},
		{"pod from the edge", closed, "edge -> tcp 10.1.0.2:9376", "not ours"},
		{"forwarding for no one else", alone, "192.0.2.9 -> tcp 203.0.113.1:80", "DROP"},
		{"forwarding for no one else, pod", alone, "192.0.2.9 -> tcp 10.1.0.2:9376", "DROP"},
		{"forwarding for no one else, NodePort", alone, "192.0.2.9 -> tcp 192.0.2.1:30001", three},
		{"forwarding for no one else, to the edge", alone, "192.0.2.9 -> tcp 192.0.2.1:22", "not ours"},
		{"forwarding for no one else, answers", alone, "ESTABLISHED 203.0.113.1 -> tcp 192.0.2.9:40000", "not ours"},
		{"other mark, VIP", otherMark, "192.0.2.9 -> tcp 198.51.100.12:80", twenty},
		{"other mark, refused", otherMark, "192.0.2.9 -> tcp 192.0.2.1:30002", "REJECT"},
	} {
		t.Run(tt.why, func(t *testing.T) { tt.run(t, flowServices()) })
	}
}

// sorted orders words as trace does.
func sorted(s string) string {
	f := strings.Fields(s)
	slices.Sort(f)
	return strings.Join(f, " ")
}

func TestReachNodes(t *testing.T) {
	s := scenario.Snapshot(scenario.Service("web", "", "TCP 80 30001: 10.0.0.11:30001 10.0.0.12:30001"))
	for i := range s.Services[0].Ports[0].Destinations {
		s.Services[0].Ports[0].Destinations[i].Reach = model.ReachNodes
	}
	tr := newTracer(t, renderFor(s, testOptions))
	for flow, want := range map[string]string{
		"192.0.2.9 -> tcp 192.0.2.1:30001":                "10.0.0.11:30001 10.0.0.12:30001 masq",
		"INVALID 10.0.0.11:30001 -> tcp 192.0.2.1:40000":  "DROP",
		"INVALID 10.0.0.11:6443 -> tcp 192.0.2.1:40000":   "not ours",
		"INVALID 10.0.0.200:30001 -> tcp 192.0.2.1:40000": "not ours",
	} {
		if got, _ := tr.trace(flow); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", flow, got, want)
		}
	}
}

// goldens are the snapshots of testdata/*.rules.
var goldens = map[string]func() *model.Snapshot{
	"router": func() *model.Snapshot {
		return scenario.Snapshot(scenario.Service("web", "", "TCP 80 30001: 10.1.0.2:9376"))
	},
	"empty": func() *model.Snapshot { return new(model.Snapshot) },
	"nodeports": func() *model.Snapshot {
		return scenario.Snapshot(scenario.Service("web", "", "TCP 80 30001: 10.1.0.2:9376 10.1.0.3:9376"))
	},
	"vips": func() *model.Snapshot {
		return scenario.Snapshot(
			scenario.Service("dns", "198.51.100.10 203.0.113.10", "UDP 53 0: 10.1.0.2:53", "TCP 53 30053:"),
			scenario.Service("web", "198.51.100.11", "TCP 80 0: 10.1.0.2:9376 10.1.0.3:9376 10.1.0.4:9376", "TCP 443 0:"+scenario.Destinations(9)))
	},
	"tree": scenario.LargeSnapshot,
	"nodes": func() *model.Snapshot {
		s := scenario.Snapshot()
		s.Nodes = append(s.Nodes, scenario.Node("node-2", "10.0.0.12", "10.1.1.0/24"), scenario.Node("node-3", "10.1.1.13", "10.1.2.0/24"))
		s.Services = append(s.Services, scenario.Service("web", "", "TCP 80 30001: 10.0.0.11:30001 10.0.0.12:30001"))
		for i := range s.Services[0].Ports[0].Destinations {
			s.Services[0].Ports[0].Destinations[i].Reach = model.ReachNodes
		}
		return s
	},
}

// goldenRules are the rules of the golden files, by the name of the file.
func goldenRules() map[string]Ruleset {
	all := map[string]Ruleset{}
	for name, s := range goldens {
		o := testOptions
		if o.Router = name == "router"; o.Router {
			o.Routed = prefixes("10.1.0.0/24 10.1.1.0/24")
		}
		all[name] = renderFor(s(), o)
	}
	keep := groupOptions()
	keep.ReturnPath = plan.ReturnEdge
	for _, f := range plan.Families {
		name := strings.ToLower(f.String())
		all["features-"+name] = Render(plan.New(features(), f, groupOptions()))
		all["keep-"+name] = Render(plan.New(features(), f, keep))
	}
	all["tree-ipv6"] = Render(plan.New(largeIPv6(), plan.IPv6, groupOptions()))
	return all
}

// largeIPv6 has trees of all kinds, of IPv6.
func largeIPv6() *model.Snapshot {
	s := scenario.Snapshot()
	for i := range 60 {
		s.Services = append(s.Services, scenario.Service(fmt.Sprint("s", i), fmt.Sprintf("2001:db8:5:%x::%x", i/16, i*17),
			fmt.Sprintf("TCP 80 %d: [2001:db8:1::2]:80 [2001:db8:1::3]:80", 30000+i)))
	}
	ports := make([]string, 150)
	for i := range ports {
		ports[i] = fmt.Sprintf("TCP %d 0: [2001:db8:1::2]:%d", 8000+3*i, 8000+3*i)
	}
	s.Services = append(s.Services, scenario.Service("many-ports", "2001:db8:5:1234:5678:9abc:def0:1234", ports...))
	return s
}

func TestGolden(t *testing.T) {
	for name, rs := range goldenRules() {
		t.Run(name, func(t *testing.T) {
			newTracer(t, rs) // its linter
			var got bytes.Buffer
			if _, err := rs.WriteTo(&got); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".rules")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("rules differ from %s (go test ./rules/iptables -update accepts them):\n%s", file, got.String())
			}
		})
	}
}

// TestGoldenIsParsed feeds the golden files to both real parsers, with the sets that they name.
func TestGoldenIsParsed(t *testing.T) {
	files, err := filepath.Glob("testdata/*.rules")
	all := goldenRules()
	if err != nil || len(files) != len(all) {
		t.Fatalf("%d golden files for %d rule sets, %v", len(files), len(all), err)
	}
	for _, backend := range []string{"nft", "legacy"} {
		for name, rs := range all {
			t.Run(backend+"/"+name, func(t *testing.T) {
				command, sets := "iptables-", ""
				if rs.Family == plan.IPv6 {
					command = "ip6tables-"
				}
				for _, s := range rs.Sets {
					sets += "create " + s.String() + "\n"
				}
				script := "ipset restore <<EOF\n" + sets + "EOF\n" + command + backend + "-restore --noflush --test testdata/" + name + ".rules"
				cmd := exec.Command("unshare", "--net", "sh", "-ec", script)
				cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(t.TempDir(), "xtables.lock"))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
	}
}

func TestRenderIsDeterministic(t *testing.T) {
	s := scenario.LargeSnapshot()
	var first bytes.Buffer
	renderFor(s, testOptions).WriteTo(&first)
	for range 5 {
		var again bytes.Buffer
		renderFor(s, testOptions).WriteTo(&again)
		if !bytes.Equal(first.Bytes(), again.Bytes()) {
			t.Fatal("equal snapshots render different bytes")
		}
	}
}

// TestCost holds the rules that a packet passes to a bound that does not depend on how many services there are.
func TestCost(t *testing.T) {
	for _, n := range []int{1, 1000, 30000} {
		s := scenario.ManyServices(n, 3)
		tr := newTracer(t, renderFor(s, testOptions), vipsOf(s)...)
		if length, chain := tr.longest(); length > leafRules+1 {
			t.Errorf("%d services: chain %s has %d rules, want at most %d", n, chain, length, leafRules+1)
		}
		for i := 0; i < n; i += max(1, n/500) {
			flow := fmt.Sprintf("192.0.2.9 -> tcp 198.18.%d.%d:80", i/256, i%256)
			fate, cost := tr.trace(flow)
			if fate != "10.1.0.2:9376 10.1.0.3:9376 10.1.0.4:9376 masq" || cost > 150 {
				t.Fatalf("%d services: %s: %s after %d rules, want at most 150", n, flow, fate, cost)
			}
		}
		for _, flow := range []string{
			"192.0.2.9 -> tcp 203.0.113.1:443", "192.0.2.9 -> tcp 192.0.2.1:22",
			"edge -> tcp 10.1.0.2:9376", "ESTABLISHED 192.0.2.9 -> tcp 203.0.113.1:443",
		} {
			if fate, cost := tr.trace(flow); fate != "not ours" || cost > 12 {
				t.Errorf("%d services: %s: %s after %d rules, want at most 12", n, flow, fate, cost)
			}
		}
	}
}

// TestCostOfFeatures is TestCost where each Service asks for all that it can, in IPv6.
func TestCostOfFeatures(t *testing.T) {
	for _, n := range []int{1, 3000} {
		s := scenario.Snapshot()
		for i := range n {
			svc := scenario.Service(fmt.Sprint("s", i), fmt.Sprintf("2001:db8:%x::%x", i/100, i), fmt.Sprintf("TCP 80 %d: [2001:db8:1::2]:80 [2001:db8:1::3]:80", 20000+i))
			svc.ClusterIPs = addrs(fmt.Sprintf("fd00::%x", i+1))
			svc.SourceRanges = &model.SourceRanges{Prefixes: prefixes("2001:db8:9::/64")}
			svc.Affinity = &model.Affinity{Timeout: time.Hour, Exact: true}
			svc.Limits = &model.Limits{NewPerSecond: 1, PerClient: 1, Total: 1}
			s.Services = append(s.Services, svc)
		}
		o := groupOptions()
		o.NodePortAddresses = prefixes("::/0")
		tr := tracerOf(t, s, plan.IPv6, o)
		for i := 0; i < n; i += max(1, n/300) {
			for to, want := range map[string]string{
				fmt.Sprintf("[2001:db8:%x::%x]:80", i/100, i):       "[2001:db8:1::2]:80 [2001:db8:1::3]:80 snat 2001:db8:b::100",
				fmt.Sprintf("[2001:db8:e::1]:%d", 20000+i):          "[2001:db8:1::2]:80 [2001:db8:1::3]:80 masq",
				fmt.Sprintf("[fd00::%x]:80", i+1):                   "[2001:db8:1::2]:80 [2001:db8:1::3]:80 masq",
				fmt.Sprintf("[fd00::%x]:81", i+1):                   "REJECT",
				fmt.Sprintf("[2001:db8:%x::%x]:81", i/100, i):       "REJECT",
				fmt.Sprintf("[2001:db8:%x::%x]:80", i/100, i+30000): "not ours",
			} {
				if got, cost := tr.trace("2001:db8:9::9 -> tcp " + to); got != want || cost > 320 {
					t.Fatalf("%d services: %s: got %s after %d rules, want %s after at most 320", n, to, got, cost, want)
				}
			}
		}
	}
}

func TestEndpointTreeCost(t *testing.T) {
	s := scenario.Snapshot(scenario.Service("big", "198.51.100.10", "TCP 80 30001:"+scenario.Destinations(5000)))
	tr := newTracer(t, renderFor(s, testOptions), vipsOf(s)...)
	fate, cost := tr.trace("192.0.2.9 -> tcp 198.51.100.10:80")
	if want := sorted(scenario.Destinations(5000)) + " masq"; fate != want {
		t.Errorf("not every endpoint can be chosen: %d of 5000", len(strings.Fields(fate))-1)
	}
	if cost > 150 {
		t.Errorf("%d rules to the last of 5000 endpoints, want at most 150", cost)
	}
}

// TestChangeIsSmall counts what one changed endpoint writes anew.
func TestChangeIsSmall(t *testing.T) {
	s := scenario.ManyServices(10000, 5)
	before := renderFor(s, testOptions)
	s.Services[777].Ports[0].Destinations = s.Services[777].Ports[0].Destinations[1:]
	after := renderFor(s, testOptions)
	for i, table := range after.Tables {
		write, gone := table.Since(before.Tables[i])
		want := map[string]int{"filter": 0, "nat": 2}[table.Name] // the leaf of the VIP, and that of the NodePort
		if len(write) != want || len(gone) != 0 {
			t.Errorf("table %s: %d chains written and %d removed, want %d and 0", table.Name, len(write), len(gone), want)
		}
	}
}
