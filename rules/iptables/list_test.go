package iptables

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// A list renders the Services of a snapshot one after the other, as one would write the rules by hand: what the trees are
// held against.
type list struct {
	f           plan.Family
	o           plan.Options
	groups      map[netip.Addr]uint8
	own, routed map[netip.Addr]bool
	services    strings.Builder // rules of SALLY-SERVICES
	chains      strings.Builder // those of chains made for one entry, declared before
	declared    strings.Builder
	entries     int
}

// plainList renders a family.
func plainList(s *model.Snapshot, p *plan.Plan) string {
	l := &list{f: p.Family, o: p.Options, groups: map[netip.Addr]uint8{}, own: map[netip.Addr]bool{}, routed: map[netip.Addr]bool{}}
	for _, a := range p.Addresses {
		l.groups[a.Addr] = a.Group
	}
	services := slices.Clone(s.Services)
	slices.SortFunc(services, func(a, b model.Service) int { return cmp.Or(a.Created.Compare(b.Created), a.Ref.Compare(b.Ref)) })
	for _, svc := range services {
		for _, sp := range svc.Ports {
			l.addresses(svc, sp)
		}
	}
	for a := range l.own {
		delete(l.routed, a)
		fmt.Fprintf(&l.services, "-A SALLY-SERVICES -d %s/%d -j RETURN\n", a, a.BitLen())
	}
	for a := range l.routed {
		fmt.Fprintf(&l.services, "-A SALLY-SERVICES -d %s/%d -g SALLY-REFUSED\n", a, a.BitLen())
	}
	for _, a := range p.Held {
		fmt.Fprintf(&l.services, "-A SALLY-SERVICES -d %s/%d -j RETURN\n", a, a.BitLen())
	}
	for _, svc := range services {
		for _, sp := range svc.Ports {
			l.nodePort(svc, sp)
		}
	}
	return l.filter(p) + l.nat(p)
}

func (l *list) addresses(svc model.Service, sp model.ServicePort) {
	add := func(to []netip.Addr, at map[netip.Addr]bool, restricted bool) {
		for _, a := range to {
			if l.f.Has(a) {
				at[a] = true
				l.entry(fmt.Sprintf("-d %s/%d", a, a.BitLen()), sp.Port, svc, sp, restricted, l.groups[a])
			}
		}
	}
	add(svc.VIPs, l.own, svc.SourceRanges != nil)
	add(svc.ExternalIPs, l.own, false)
	add(svc.ClusterIPs, l.routed, false)
}

func (l *list) nodePort(svc model.Service, sp model.ServicePort) {
	loopback := map[plan.Family]string{plan.IPv4: "! -d 127.0.0.0/8", plan.IPv6: "! -d ::1/128"}[l.f]
	if sp.NodePort != 0 {
		l.entry(loopback+" -m addrtype --dst-type LOCAL", sp.NodePort, svc, sp, svc.SourceRanges != nil && l.o.SourceRangesOnNodePorts, 0)
	}
}

func (l *list) entry(match string, port uint16, svc model.Service, sp model.ServicePort, restricted bool, group uint8) {
	l.entries++
	in, to := fmt.Sprint("SALLY-IN-", l.entries), fmt.Sprint("SALLY-AT-", l.entries)
	fmt.Fprintf(&l.declared, ":%s - [0:0]\n:%s - [0:0]\n", in, to)
	proto := strings.ToLower(string(sp.Protocol))
	fmt.Fprintf(&l.services, "-A SALLY-SERVICES %s -p %s -m %s --dport %d -g %s\n", match, proto, proto, port, in)
	if restricted {
		for _, r := range svc.SourceRanges.Prefixes {
			if l.f.Has(r.Addr()) {
				fmt.Fprintf(&l.chains, "-A %s -s %s -g %s\n", in, r, to)
			}
		}
		fmt.Fprintf(&l.chains, "-A %s -j MARK --set-xmark 0x53300000/0xffffffff\n-A %s -j RETURN\n", in, in)
	}
	fmt.Fprintf(&l.chains, "-A %s -g %s\n", in, to)
	l.destinations(to, svc, sp, proto, group)
}

func (l *list) destinations(chain string, svc model.Service, sp model.ServicePort, proto string, group uint8) {
	var own []netip.AddrPort
	for _, d := range sp.Destinations {
		if l.f.Has(d.Addr.Addr()) {
			own = append(own, d.Addr)
		}
	}
	if len(own) == 0 {
		fmt.Fprintf(&l.chains, "-A %s -g SALLY-REFUSED\n", chain)
		return
	}
	if svc.Limits != nil {
		fmt.Fprintf(&l.chains, "-A %s -m connlimit --connlimit-above 5 --connlimit-mask 32 --connlimit-saddr -g SALLY-DROPPED\n", chain)
	}
	first := 0x53100000 | int(group)<<16
	fmt.Fprintf(&l.chains, "-A %s -j HMARK --hmark-tuple src --hmark-mod %d --hmark-offset %#x --hmark-rnd 0\n", chain, len(own), first)
	for i, d := range own {
		fmt.Fprintf(&l.chains, "-A %s -p %s -m mark --mark %#x -j DNAT --to-destination %s\n", chain, proto, first+i, d)
	}
}

func (l *list) nat(p *plan.Plan) string {
	post := ""
	if p.KeepSource {
		post = "-A SALLY-POSTROUTING -m addrtype --src-type LOCAL -g SALLY-MASQ\n"
		for _, in := range p.Inside {
			post += fmt.Sprintf("-A SALLY-POSTROUTING -s %s -g SALLY-TRANSLATE\n", in)
		}
		post += "-A SALLY-POSTROUTING -j MARK --set-xmark 0x0/0xffffffff\n-A SALLY-POSTROUTING -j RETURN\n"
	}
	post += "-A SALLY-POSTROUTING -m addrtype --src-type LOCAL -g SALLY-MASQ\n-A SALLY-POSTROUTING -g SALLY-TRANSLATE\n"
	groups, to := "", ""
	for i, r := range p.SNAT {
		if r.First.IsValid() {
			groups += fmt.Sprintf(":SALLY-G%d - [0:0]\n", i)
			to += fmt.Sprintf("-A SALLY-TRANSLATE -m mark --mark %#x/0xf0000 -g SALLY-G%d\n", i<<16, i)
			to += fmt.Sprintf("-A SALLY-G%d -j MARK --set-xmark 0x0/0xffffffff\n-A SALLY-G%d -j SNAT --to-source %s-%s --persistent\n", i, i, r.First, r.Last)
		}
	}
	return `*nat
:SALLY-SERVICES - [0:0]
:SALLY-POSTROUTING - [0:0]
:SALLY-REFUSED - [0:0]
:SALLY-DROPPED - [0:0]
:SALLY-TRANSLATE - [0:0]
:SALLY-MASQ - [0:0]
` + groups + l.declared.String() + `-A SALLY-REFUSED -j MARK --set-xmark 0x53200000/0xffffffff
-A SALLY-DROPPED -j MARK --set-xmark 0x53300000/0xffffffff
` + l.services.String() + l.chains.String() + `-A SALLY-POSTROUTING -m mark ! --mark 0x53100000/0xffb00000 -j RETURN
-A SALLY-POSTROUTING -j CONNMARK --set-xmark 0x53000000/0xff000000
` + post + to + `-A SALLY-TRANSLATE -g SALLY-MASQ
-A SALLY-MASQ -j MARK --set-xmark 0x0/0xffffffff
-A SALLY-MASQ -j MASQUERADE --random-fully
COMMIT
`
}

func (l *list) filter(p *plan.Plan) string {
	input, forward := "", ""
	for _, a := range p.Held {
		input += fmt.Sprintf("-A SALLY-INPUT -d %s/%d -p %s -j ACCEPT\n-A SALLY-INPUT -d %s/%d -m conntrack --ctstate NEW,INVALID -j DROP\n",
			a, a.BitLen(), dialectOf(l.f).icmp, a, a.BitLen())
	}
	for a := range l.own {
		at := fmt.Sprintf("-A SALLY-INPUT -d %s/%d", a, a.BitLen())
		input += at + " -p " + dialectOf(l.f).icmp + " -j ACCEPT\n" + at + " -m conntrack --ctstate INVALID -j DROP\n"
		for _, port := range l.o.VIPPorts {
			input += at + fmt.Sprintf(" -p tcp -m tcp --dport %d -j ACCEPT\n", port)
		}
		input += at + " -j REJECT\n"
	}
	answers := ""
	for _, a := range p.Answers {
		notICMP := map[plan.Family]string{plan.IPv6: "! -p ipv6-icmp "}[l.f]
		answers += fmt.Sprintf("-A SALLY-%%s -s %s %s-m conntrack --ctstate INVALID -j DROP\n", a.Prefix, notICMP)
		if p.KeepSource {
			forward += fmt.Sprintf("-A SALLY-FORWARD -s %s -p tcp -m conntrack --ctstate NEW -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP\n", a.Prefix)
		}
	}
	return `*filter
:SALLY-FORWARD - [0:0]
:SALLY-INPUT - [0:0]
:SALLY-OUTPUT - [0:0]
-A SALLY-FORWARD -m mark --mark 0x53100000/0xffb00000 -j ACCEPT
-A SALLY-FORWARD -m mark --mark 0x53300000/0xfff00000 -j DROP
-A SALLY-FORWARD -m mark --mark 0x53200000/0xfff00000 -j REJECT
-A SALLY-INPUT -m mark --mark 0x53300000/0xfff00000 -j DROP
-A SALLY-INPUT -m mark --mark 0x53200000/0xfff00000 -j REJECT
-A SALLY-OUTPUT -m mark --mark 0x53300000/0xfff00000 -j DROP
-A SALLY-OUTPUT -m mark --mark 0x53200000/0xfff00000 -j REJECT
` + strings.ReplaceAll(answers, "%s", "INPUT") + input + strings.ReplaceAll(answers, "%s", "FORWARD") + forward + "COMMIT\n"
}

// TestTreeAgreesWithList compares trees and lists over random services, options and packets.
func TestTreeAgreesWithList(t *testing.T) {
	fates := map[string]int{}
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 0))
		s, o, f := randomSnapshot(r), randomOptions(r), plan.Families[r.IntN(2)]
		p := plan.New(s, f, o)
		tree := tracerOf(t, s, f, o)
		list, err := parseRules(plainList(s, p), tree.local...)
		if err != nil {
			t.Fatal(err)
		}
		if r.IntN(4) == 0 {
			tree.beyond, list.beyond = "connections", "connections"
		}
		for range 100 {
			flow := randomFlow(r, s, f)
			got, _ := tree.trace(flow)
			want, _ := list.trace(flow)
			if got != want {
				t.Fatalf("seed %d, %v: %s\ntree %s\nlist %s", seed, f, flow, got, want)
			}
			fates[kindOf(got)]++
		}
	}
	for _, kind := range []string{"REJECT", "DROP", "ACCEPT", "not ours", "masq", "snat", "kept"} {
		if fates[kind] < 50 {
			t.Errorf("of what was compared %v, %q too seldom", fates, kind)
		}
	}
}

// kindOf is a fate without its addresses.
func kindOf(fate string) string {
	for _, word := range []string{"REJECT", "DROP", "ACCEPT", "not ours", "masq", "snat"} {
		if strings.Contains(fate, word) {
			return word
		}
	}
	return "kept"
}

func randomOptions(r *rand.Rand) plan.Options {
	o := groupOptions()
	o.Groups = append(o.Groups, plan.Group{Name: "b", SNATAddresses: []plan.Range{addrRange("10.0.0.108", "10.0.0.108")}}, plan.Group{Name: "c"})
	o.Groups = o.Groups[:r.IntN(4)]
	o.SNAT = []plan.SNAT{plan.SNATAuto, plan.SNATAlways, plan.SNATNever}[r.IntN(3)]
	o.ReturnPath = []plan.ReturnPath{plan.ReturnDirect, plan.ReturnEdge}[r.IntN(2)]
	o.SourceRangesOnNodePorts = r.IntN(2) == 0
	return o
}

// randomSnapshot has Services that ask for anything, and that claim each other's addresses and ports.
func randomSnapshot(r *rand.Rand) *model.Snapshot {
	s := scenario.Snapshot()
	s.Nodes[0].PodCIDRs = append(s.Nodes[0].PodCIDRs, netip.MustParsePrefix("2001:db8:1::/64"))
	address := randomAddresses(r)
	for i := range 1 + r.IntN(40) {
		var ports []string
		for _, port := range r.Perm(200)[:1+r.IntN(1+r.IntN([]int{15, 15, 15, 15, 15, 15, 15, 60}[r.IntN(8)]))] { // a port number has one meaning in a Service
			ports = append(ports, fmt.Sprintf("%s %d %d:%s", []string{"TCP", "UDP", "SCTP"}[r.IntN(3)], 1+port,
				[]int{0, 30000 + r.IntN(2768)}[r.IntN(2)], randomDestinations(r)))
		}
		svc := scenario.Service(fmt.Sprintf("s%d", i), "", ports...)
		svc.Created = time.Unix(int64(r.IntN(20)), 0)
		for range r.IntN(3) {
			svc.VIPs = append(svc.VIPs, address())
		}
		randomFeatures(r, &svc, address)
		s.Services = append(s.Services, svc)
	}
	return s
}

// randomAddresses draws from a few networks, among them the edge's own and those of held addresses.
func randomAddresses(r *rand.Rand) func() netip.Addr {
	nets := []string{"198.51.100.", "203.0.113.", "10.200.7.", "192.0.2.", "10.0.0.", "2001:db8:5::", "2001:db8:5:1::", "2001:db8:e::", "2001:db8:b::"}
	r.Shuffle(len(nets), func(i, j int) { nets[i], nets[j] = nets[j], nets[i] })
	nets = nets[:1+r.IntN(len(nets))]
	o := groupOptions()
	o.Groups = append(o.Groups, plan.Group{NodesGateway: addrs("10.0.0.108")})
	taken := append(addrs(edgeIP+" "+edgeIPv6+" 192.0.2.9 "+scenario.NodeIP), heldBy(o)...)
	return func() netip.Addr {
		for {
			if a := netip.MustParseAddr(fmt.Sprint(nets[r.IntN(len(nets))], r.IntN(256))); !slices.Contains(taken, a) {
				return a
			}
		}
	}
}

// heldBy are the addresses of the options' groups.
func heldBy(o plan.Options) []netip.Addr {
	return slices.Concat(plan.New(&model.Snapshot{}, plan.IPv4, o).Held, plan.New(&model.Snapshot{}, plan.IPv6, o).Held)
}

func randomDestinations(r *rand.Rand) string {
	to := scenario.Destinations(r.IntN(2 + r.IntN(24)))
	for i := range r.IntN(1 + r.IntN(12)) {
		to += fmt.Sprintf(" [2001:db8:1::%x]:9376", i+2)
	}
	return to
}

func randomFeatures(r *rand.Rand, svc *model.Service, address func() netip.Addr) {
	if r.IntN(4) == 0 {
		svc.ExternalIPs = append(svc.ExternalIPs, address())
	}
	if r.IntN(4) == 0 {
		svc.ClusterIPs = append(svc.ClusterIPs, address())
	}
	if r.IntN(3) == 0 {
		all := prefixes("192.0.2.0/29 192.0.2.128/25 10.1.0.0/16 203.0.113.7/32 2001:db8:9::/64 10.2.0.0/16 10.3.0.0/16 10.4.0.0/16 10.5.0.0/16 " +
			"10.6.0.0/16 10.7.0.0/16 10.8.0.0/16 2001:db8:a::/64")
		svc.SourceRanges = &model.SourceRanges{}
		few := 1 + r.IntN(3) // 8 are the most that are inline
		for _, p := range all {
			if r.IntN(4) < few {
				svc.SourceRanges.Prefixes = append(svc.SourceRanges.Prefixes, p)
			}
		}
		svc.SourceRanges.Prefixes = plan.Disjoint(svc.SourceRanges.Prefixes)
	}
	if r.IntN(4) == 0 {
		svc.Affinity = &model.Affinity{Timeout: time.Hour, Exact: r.IntN(2) == 0}
	}
	if r.IntN(4) == 0 {
		svc.Limits = &model.Limits{NewPerSecond: 5, PerClient: 5}
	}
	for i := range svc.Ports {
		if r.IntN(4) > 0 {
			continue
		}
		for j := range svc.Ports[i].Destinations {
			svc.Ports[i].Destinations[j].Weight = uint16(r.IntN(5))
		}
	}
}

// randomFlow prefers addresses and ports that the snapshot has, and their neighbours.
func randomFlow(r *rand.Rand, s *model.Snapshot, f plan.Family) string {
	svc := s.Services[r.IntN(len(s.Services))]
	sp := svc.Ports[r.IntN(len(svc.Ports))]
	to := slices.DeleteFunc(slices.Concat(svc.VIPs, svc.ExternalIPs, svc.ClusterIPs), func(a netip.Addr) bool { return !f.Has(a) })
	here := map[plan.Family]string{plan.IPv4: edgeIP, plan.IPv6: edgeIPv6}[f]
	to = append(to, netip.MustParseAddr(here), netip.MustParseAddr(map[plan.Family]string{plan.IPv4: "10.0.0.101", plan.IPv6: "2001:db8:b::100"}[f]))
	dst := to[r.IntN(len(to))]
	port := []uint16{sp.Port, sp.Port, sp.NodePort, sp.NodePort, 443, uint16(r.IntN(65536))}[r.IntN(6)]
	if r.IntN(6) == 0 {
		dst = dst.Next()
	}
	if r.IntN(6) == 0 {
		port++
	}
	from := map[plan.Family][]string{
		plan.IPv4: {"192.0.2.9", "192.0.2.1", "192.0.2.130", "10.1.0.2", "203.0.113.7", "10.0.0.11"},
		plan.IPv6: {"2001:db8:9::9", "2001:db8:7::9", "[2001:db8:1::2]:9376"},
	}[f]
	state := []string{"", "", "", "", "INVALID ", "MIDSTREAM "}[r.IntN(6)]
	source := from[r.IntN(len(from))]
	if r.IntN(5) == 0 {
		source = "edge"
	}
	proto := strings.ToLower(string(sp.Protocol))
	if r.IntN(5) == 0 {
		proto = []string{"tcp", "udp", "sctp", dialectOf(f).icmp}[r.IntN(4)]
	}
	return fmt.Sprintf("%s%s -> %s %s", state, source, proto, netip.AddrPortFrom(dst, port))
}
