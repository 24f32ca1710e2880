package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(i / 256), byte(i)}) }

// options have n groups.
func options(n int) (o Options) {
	for i := range n {
		o.Groups = append(o.Groups, Group{Name: fmt.Sprint("group-", i)})
	}
	return o
}

// TestGroups holds that addresses are spread evenly, and that a group more takes what it gets from all others evenly.
func TestGroups(t *testing.T) {
	const n = 8192
	three, four := options(3), options(4)
	count, moved := map[uint8]int{}, 0
	for i := range n {
		before, after := three.group(addr(i)), four.group(addr(i))
		count[after]++
		if before != after {
			moved++
			if after != 4 {
				t.Fatalf("%v moved from group %d to %d, not to the new one", addr(i), before, after)
			}
		}
	}
	for g := range uint8(4) {
		if c := count[g+1]; c < n/4*9/10 || c > n/4*11/10 {
			t.Errorf("group %d has %d of %d addresses, want a fourth", g+1, c, n)
		}
	}
	if moved != count[4] {
		t.Errorf("%d addresses moved, the new group has %d", moved, count[4])
	}
	if g := options(0).group(addr(1)); g != 0 {
		t.Errorf("without groups: got group %d, want 0", g)
	}
	for i := range n {
		if g := options(20).group(addr(i)); g > MaxGroups {
			t.Fatalf("group %d does not fit into a mark", g)
		}
	}
}

// TestClaims has Services claim each other's addresses: the oldest is served.
func TestClaims(t *testing.T) {
	young := scenario.Service("a", "198.51.100.10 2001:db8::10", "TCP 80 30001: 10.1.0.2:80", "UDP 80 0: 10.1.0.2:80")
	old := scenario.Service("b", "198.51.100.10", "TCP 80 30001: 10.1.0.3:80 [2001:db8:1::3]:80")
	young.Created, old.Created = time.Unix(2, 0), time.Unix(1, 0)
	old.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("198.51.100.11")}
	young.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.11")}
	old.SourceRanges = &model.SourceRanges{}
	o := options(3)
	o.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	p := New(scenario.Snapshot(young, old), IPv4, o)
	var got []string
	for _, a := range p.Addresses {
		got = append(got, fmt.Sprintf("%v own=%v group=%v", a.Addr, a.Own, a.Group != 0))
		got = append(got, words(a.Entries)...)
	}
	got = append(got, words(p.NodePorts)...)
	want := []string{
		"10.96.0.1 own=false group=false", "TCP 80 b 1 restricted=false",
		"198.51.100.10 own=true group=true", "TCP 80 b 1 restricted=true", "UDP 80 a 1 restricted=false",
		"198.51.100.11 own=true group=true", "TCP 80 b 1 restricted=false", "UDP 80 a 1 restricted=false",
		"TCP 30001 b 1 restricted=false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func words(entries []Entry) (out []string) {
	for _, e := range entries {
		out = append(out, fmt.Sprintf("%s %d %s %d restricted=%v", e.Protocol, e.Port, e.Service.Ref.Name, len(e.Destinations), e.Restricted))
	}
	return out
}

func TestSticky(t *testing.T) {
	for _, tt := range []struct {
		affinity     *model.Affinity
		destinations int
		want         time.Duration
		bySource     bool
	}{
		{nil, 2, 0, false},
		{&model.Affinity{Timeout: time.Hour}, 2, 0, true},
		{&model.Affinity{Timeout: time.Hour, Exact: true}, 64, time.Hour, true},
		{&model.Affinity{Timeout: time.Hour, Exact: true}, 65, 0, true},
	} {
		p := New(scenario.Snapshot(keeping("web", tt.affinity, tt.destinations)), IPv4, Options{})
		target := p.Addresses[0].Entries[0].Target
		if got := target.Sticky(); got != tt.want || target.BySource() != tt.bySource {
			t.Errorf("%+v, %d destinations: got %v, %v", tt.affinity, tt.destinations, got, target.BySource())
		}
		if exact := tt.affinity != nil && tt.affinity.Exact; len(p.Problems) != 0 != (exact && tt.want == 0) {
			t.Errorf("%+v, %d destinations: Problems %v", tt.affinity, tt.destinations, p.Problems)
		}
	}
}

// keeping is a Service with an affinity and so many destinations.
func keeping(name string, a *model.Affinity, destinations int) model.Service {
	svc := scenario.Service(name, "198.51.100.10", "TCP 80 0:")
	svc.Affinity, svc.Ports[0].Destinations = a, equalWeights(destinations)
	return svc
}

// TestBounds has more asked for than the kernel can do: the older Services get it, whatever younger ones ask for.
func TestBounds(t *testing.T) {
	exact := &model.Affinity{Timeout: time.Hour, Exact: true}
	s := scenario.Snapshot(keeping("huge", nil, MaxSlots+1), keeping("for L7", exact, 4000))
	s.Services[1].VIPs = nil
	for i := range 70 {
		svc := keeping(fmt.Sprintf("s%02d", i), exact, 60)
		svc.Created = time.Unix(int64(100-i), 0)
		s.Services = append(s.Services, svc)
	}
	p := New(s, IPv4, Options{})
	got := map[string]string{}
	for _, problem := range p.Problems {
		got[problem.Object.Name] = problem.Field + ": " + problem.Message
	}
	if len(got) != 3 || len(p.Problems) != 3 {
		t.Errorf("Problems %v, want those of 3 Services", p.Problems)
	}
	const older = "spec.sessionAffinity: port 80 of TCP, IPv4: clients keep to endpoints by a hash, without timeout: " +
		"with older Services, it has more than the 4096 endpoints that clients are kept to by state"
	for name, want := range map[string]string{
		"huge": "spec.ports: port 80 of TCP, IPv4: of its endpoints, 65536 get connections, which is the most", "s00": older, "s01": older,
	} {
		if got[name] != want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got[name], want)
		}
	}
}

func TestKeepSource(t *testing.T) {
	for _, tt := range []struct {
		snat SNAT
		path ReturnPath
		want bool
	}{
		{"", "", false}, {SNATAuto, ReturnDirect, false}, {SNATAuto, ReturnEdge, true}, {"", ReturnEdge, true},
		{SNATAlways, ReturnEdge, false}, {SNATNever, ReturnEdge, true},
	} {
		o := Options{SNAT: tt.snat, ReturnPath: tt.path}
		if got := New(&model.Snapshot{}, IPv4, o).KeepSource; got != tt.want {
			t.Errorf("snat %q, return path %q: got %v", tt.snat, tt.path, got)
		}
	}
}

// TestHeld lists what moves with groups, by family.
func TestHeld(t *testing.T) {
	parse := netip.MustParseAddr
	o := Options{Groups: []Group{
		{Name: "b", SNATAddresses: []Range{{parse("10.0.0.102"), parse("10.0.0.103")}, {parse("2001:db8::1"), parse("2001:db8::1")}}},
		{Name: "a", SNATAddresses: []Range{{parse("10.0.0.100"), parse("10.0.0.100")}}, NodesGateway: []netip.Addr{parse("10.0.0.1"), parse("10.0.0.102")}},
	}}
	p4, p6 := New(&model.Snapshot{}, IPv4, o), New(&model.Snapshot{}, IPv6, o)
	if got, want := fmt.Sprint(p4.Held), "[10.0.0.1 10.0.0.100 10.0.0.102 10.0.0.103]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(p6.SNAT), "[{invalid IP invalid IP} {2001:db8::1 2001:db8::1} {invalid IP invalid IP}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDisjoint(t *testing.T) {
	var in []netip.Prefix
	for p := range strings.FieldsSeq("10.1.1.0/24 10.0.0.11/32 10.1.0.0/16 10.1.1.13/32 10.2.0.0/24 10.2.0.0/24") {
		in = append(in, netip.MustParsePrefix(p))
	}
	if got, want := fmt.Sprint(Disjoint(in)), "[10.0.0.11/32 10.1.0.0/16 10.2.0.0/24]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
