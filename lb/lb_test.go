package lb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/watcher/model"
)

// Address plan: pool "front" is 192.0.2.10-192.0.2.20, pool "six" is 2001:db8::/120; 198.51.100.0/24 is nobody's.
func plan(t *testing.T) []Pool {
	t.Helper()
	return []Pool{mustPool(t, "front", "192.0.2.10-192.0.2.20"), mustPool(t, "six", "2001:db8::/120")}
}

func mustPool(t *testing.T, name string, addresses ...string) Pool {
	t.Helper()
	p := Pool{Name: name}
	for _, a := range addresses {
		r, err := ParseRange(a)
		if err != nil {
			t.Fatal(err)
		}
		p.Ranges = append(p.Ranges, r)
	}
	return p
}

// day is a creation time, counted in days.
func day(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }

const field = "metadata.annotations[sallyport.io/load-balancer-ips]"

// service asks for addresses, which are separated by spaces.
func service(name string, created int, addresses string) model.Service {
	s := model.Service{Ref: model.ObjectRef{Kind: "Service", Namespace: "shop", Name: name}, Created: day(created), LoadBalancer: true}
	for a := range strings.FieldsSeq(addresses) {
		s.RequestField = field
		s.RequestedVIPs = append(s.RequestedVIPs, netip.MustParseAddr(a))
	}
	return s
}

// TestProblemsOfOneServiceAreBounded: each is a line in the log of every edge, and an Event.
func TestProblemsOfOneServiceAreBounded(t *testing.T) {
	greedy := service("greedy", 1, "")
	greedy.RequestField = field
	for i := range 64 {
		greedy.RequestedVIPs = append(greedy.RequestedVIPs, netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	s := model.Snapshot{Services: []model.Service{greedy, service("web", 2, "198.51.100.1")}}
	Assign(&s, plan(t))
	if want := model.MaxProblems + 2; len(s.Problems) != want {
		t.Errorf("%d Problems, want %d: %v", len(s.Problems), want, s.Problems)
	}
}

func TestAssignStory(t *testing.T) {
	var s model.Snapshot
	pools := plan(t)
	set := func(services ...model.Service) {
		slices.SortFunc(services, func(a, b model.Service) int { return a.Ref.Compare(b.Ref) })
		s = model.Snapshot{Services: services}
	}
	check := func(what string, vips map[string]string, problems ...string) {
		t.Helper()
		for range 2 { // the second time on its own result
			s.Problems = nil
			Assign(&s, pools)
		}
		got := map[string]string{}
		for _, svc := range s.Services {
			got[svc.Ref.Name] = strings.Trim(fmt.Sprint(svc.VIPs), "[]")
		}
		if !reflect.DeepEqual(got, vips) {
			t.Errorf("%s: VIPs\ngot  %v\nwant %v", what, got, vips)
		}
		var gotProblems []string
		for _, p := range s.Problems {
			gotProblems = append(gotProblems, p.String())
		}
		if !slices.Equal(gotProblems, problems) {
			t.Errorf("%s: problems\ngot  %s\nwant %s", what, strings.Join(gotProblems, "\n     "), strings.Join(problems, "\n     "))
		}
	}

	set(service("web", 2, "192.0.2.10"))
	check("web gets what it asks for", map[string]string{"web": "192.0.2.10"})

	set(service("web", 2, "192.0.2.10"), service("api", 3, "192.0.2.10 192.0.2.11"))
	check("api is younger and cannot have web's address, but its other one",
		map[string]string{"web": "192.0.2.10", "api": "192.0.2.11"},
		"Service shop/api: "+field+": 192.0.2.10 is held by Service shop/web, which came first: choose another (AddressInUse)")

	set(service("api", 3, "192.0.2.10 192.0.2.11"))
	check("web is gone and api has both", map[string]string{"api": "192.0.2.10 192.0.2.11"})

	set(service("api", 3, "192.0.2.10"), service("old", 1, "192.0.2.10"))
	check("the older one wins, wherever it stands in the list", map[string]string{"api": "", "old": "192.0.2.10"},
		"Service shop/api: "+field+": 192.0.2.10 is held by Service shop/old, which came first: choose another (AddressInUse)")

	set(service("b", 1, "192.0.2.10"), service("a", 1, "192.0.2.10"))
	check("of the same age the name decides", map[string]string{"a": "192.0.2.10", "b": ""},
		"Service shop/b: "+field+": 192.0.2.10 is held by Service shop/a, which came first: choose another (AddressInUse)")

	set(service("web", 1, "198.51.100.1 192.0.2.20 192.0.2.20 2001:db8::1"))
	check("outside all pools, repeated, and in both families", map[string]string{"web": "192.0.2.20 2001:db8::1"},
		"Service shop/web: "+field+": 198.51.100.1 is in no pool: choose an address of the pools front (192.0.2.10-192.0.2.20), six (2001:db8::/120) (AddressNotInPool)")

	set(service("web", 1, ""))
	check("none asked for", map[string]string{"web": ""},
		"Service shop/web: spec.loadBalancerIP: no address is asked for: set annotation sallyport.io/load-balancer-ips to an address of the pools front (192.0.2.10-192.0.2.20), six (2001:db8::/120) (NoAddressRequested)")

	invalid := service("web", 1, "")
	invalid.RequestField = field
	set(invalid)
	check("the request was unreadable, which translation has said", map[string]string{"web": ""})

	other := service("web", 1, "192.0.2.10")
	other.LoadBalancer = false
	other.VIPs = []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	set(other)
	check("no longer a LoadBalancer of ours", map[string]string{"web": ""})

	pools = nil
	set(service("web", 1, "192.0.2.10"))
	check("no pools", map[string]string{"web": ""},
		"Service shop/web: "+field+": 192.0.2.10 is in no pool: choose an address of a pool, of which none is configured (loadBalancer.ipAddressPools) (AddressNotInPool)")
}

func TestAssignLeavesOthersAlone(t *testing.T) {
	const remedy = ": 192.0.2.10 is not of a pool here, so another controller serves the Service: to have it served here make it anew with " +
		"spec.loadBalancerClass: sallyport.io/edge, or, if that controller is gone, clear its status (ServedByOther)"
	ip := func(s string) model.StatusAddress { return model.StatusAddress{IP: netip.MustParseAddr(s)} }
	for _, tt := range []struct {
		name     string
		status   model.Status
		ours     bool
		mentions string
	}{
		{"no status", model.Status{}, true, ""},
		{"addresses of pools, in both families", model.Status{Addresses: []model.StatusAddress{ip("192.0.2.11"), ip("2001:db8::7")}}, true, ""},
		{"an address of no pool", model.Status{Addresses: []model.StatusAddress{ip("192.0.2.11"), ip("198.51.100.1")}}, false, "198.51.100.1"},
		{"a name", model.Status{Addresses: []model.StatusAddress{{Hostname: "lb.example.net"}}}, false, "lb.example.net"},
		{"a name with an address of a pool", model.Status{Addresses: []model.StatusAddress{{IP: netip.MustParseAddr("192.0.2.11"), Hostname: "lb"}}}, false, "lb"},
		{"ours by mark or class, whatever the address", model.Status{Served: true, Addresses: []model.StatusAddress{ip("198.51.100.1")}}, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := model.Snapshot{Services: []model.Service{service("web", 1, "192.0.2.10")}}
			tt.status.Ref = s.Services[0].Ref
			s.Statuses = []model.Status{tt.status}
			for range 2 { // the second time on its own result
				s.Problems = nil
				Assign(&s, plan(t))
			}
			if s.Statuses[0].Served != tt.ours || (len(s.Services[0].VIPs) > 0) != tt.ours {
				t.Errorf("served %v with VIPs %v, want ours %v", s.Statuses[0].Served, s.Services[0].VIPs, tt.ours)
			}
			var got, want string
			for _, p := range s.Problems {
				got += p.String()
			}
			if !tt.ours {
				want = "Service shop/web: status.loadBalancer" + strings.Replace(remedy, "192.0.2.10", tt.mentions, 1)
			}
			if got != want {
				t.Errorf("problems\ngot  %s\nwant %s", got, want)
			}
		})
	}
}

// TestAssignNeverShares gives random requests: no address is held twice, none is given that was not asked for or that is
// in no pool, and who is refused is younger than the holder.
func TestAssignNeverShares(t *testing.T) {
	pools := plan(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var s model.Snapshot
		for i := range 30 {
			var want []string
			for range r.IntN(3) {
				want = append(want, fmt.Sprintf("192.0.2.%d", 5+r.IntN(20)))
			}
			s.Services = append(s.Services, service(fmt.Sprintf("s%02d", i), 1+r.IntN(5), strings.Join(want, " ")))
		}
		Assign(&s, pools)
		holder := map[netip.Addr]*model.Service{}
		for i := range s.Services {
			for _, a := range s.Services[i].VIPs {
				if holder[a] != nil || !pools[0].Contains(a) || !slices.Contains(s.Services[i].RequestedVIPs, a) {
					t.Fatalf("%v given to %v", a, s.Services[i].Ref)
				}
				holder[a] = &s.Services[i]
			}
		}
		for i := range s.Services {
			svc := &s.Services[i]
			for _, a := range svc.RequestedVIPs {
				h := holder[a]
				if pools[0].Contains(a) && (h == nil || h.Created.After(svc.Created)) {
					t.Fatalf("%v asked for by %v of %v is held by %+v", a, svc.Ref, svc.Created, h)
				}
			}
		}
	}
}

func TestParseRange(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"192.0.2.0/24", "192.0.2.0/24"},
		{" 192.0.2.10 - 192.0.2.20 ", "192.0.2.10-192.0.2.20"},
		{"192.0.2.16-192.0.2.31", "192.0.2.16/28"},
		{"192.0.2.7-192.0.2.7", "192.0.2.7/32"},
		{"192.0.2.7/32", "192.0.2.7/32"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"2001:db8::/64", "2001:db8::/64"},
		{"2001:db8::1-2001:db8::f", "2001:db8::1-2001:db8::f"},
		{"192.0.2.1/24", `"192.0.2.1/24" has host bits set: did you mean 192.0.2.0/24, or the range 192.0.2.1-192.0.2.255?`},
		{"192.0.2.1", `"192.0.2.1" is a single address: write 192.0.2.1/32`},
		{"192.0.2.20-192.0.2.10", `"192.0.2.20-192.0.2.10" ends before it begins: did you mean 192.0.2.10-192.0.2.20?`},
		{"192.0.2.1-2001:db8::1", `"192.0.2.1-2001:db8::1" mixes IPv4 and IPv6: write two ranges`},
		{"192.0.2.1-20", `"192.0.2.1-20": "20" is not an IP address`},
		{"fe80::1%eth0-fe80::2", `"fe80::1%eth0-fe80::2": "fe80::1%eth0" is not an IP address`},
		{"::ffff:192.0.2.0/120", `"::ffff:192.0.2.0/120" is an IPv4 address in IPv6 form: write it as IPv4`},
		{"192.0.2.0/33", `"192.0.2.0/33" is neither a CIDR (192.0.2.0/24) nor a range (192.0.2.10-192.0.2.20)`},
		{"front", `"front" is neither a CIDR (192.0.2.0/24) nor a range (192.0.2.10-192.0.2.20)`},
		{"", `"" is neither a CIDR (192.0.2.0/24) nor a range (192.0.2.10-192.0.2.20)`},
	} {
		r, err := ParseRange(tt.in)
		got := fmt.Sprint(err)
		if err == nil {
			got = r.String()
		}
		if got != tt.want {
			t.Errorf("%q:\ngot  %s\nwant %s", tt.in, got, tt.want)
		}
	}
}

// TestPrefixes holds Prefixes against Contains, address by address.
func TestPrefixes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	base := netip.MustParseAddr("192.0.2.0").As4()
	addr := func(i int) netip.Addr { b := base; b[3] = byte(i); return netip.AddrFrom4(b) }
	for range 500 {
		i, j := r.IntN(256), r.IntN(256)
		rg := Range{addr(min(i, j)), addr(max(i, j))}
		ps := rg.Prefixes()
		for k := range 256 {
			n := 0
			for _, p := range ps {
				if p.Contains(addr(k)) {
					n++
				}
			}
			if want := rg.Contains(addr(k)); want != (n == 1) || n > 1 {
				t.Fatalf("%v: %v is in %d of %v", rg, addr(k), n, ps)
			}
		}
	}
	if got := fmt.Sprint(mustPool(t, "p", "0.0.0.0-255.255.255.255").Ranges[0].Prefixes()); got != "[0.0.0.0/0]" {
		t.Errorf("got %s", got)
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"192.0.2.0/24", "192.0.2.1-192.0.2.9", "::/0", "a-b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil {
			return
		}
		again, err := ParseRange(r.String())
		if err != nil || again != r {
			t.Errorf("%q reads as %v, which reads as %v (%v)", s, r, again, err)
		}
	})
}
