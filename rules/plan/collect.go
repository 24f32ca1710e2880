package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"

	"sallyport/watcher/model"
)

// A claim is a service port's to an address.
type claim struct {
	addr netip.Addr
	own  bool
	nth  int // in the order of Services: the first has it
	Entry
}

// collect gives the Services their addresses and NodePorts: of two claims to the same, the older Service's is served.
func (p *Plan) collect(services []model.Service) {
	targets, addresses := makeTargets(services, p.Family)
	claims, bounds := make([]claim, 0, addresses), bounds{p: p}
	for _, svc := range byAge(services) {
		for i := range svc.Ports {
			t := targets.next(svc, &svc.Ports[i])
			before := len(p.NodePorts) + len(claims)
			p.claimNodePort(t)
			claims = p.claim(claims, t)
			if len(p.NodePorts)+len(claims) > before { // else it is for L7 alone
				bounds.hold(t)
			}
		}
	}
	p.NodePorts = order(p.NodePorts)
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.addr.Compare(b.addr), a.compare(b.Entry), cmp.Compare(a.nth, b.nth))
	})
	p.settle(claims)
}

// byAge returns the services, the oldest first.
func byAge(services []model.Service) []*model.Service {
	all := make([]*model.Service, len(services))
	for i := range services {
		all[i] = &services[i]
	}
	slices.SortFunc(all, func(a, b *model.Service) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return a.Ref.Compare(b.Ref)
	})
	return all
}

// targets are made all at once.
type targets struct {
	family Family
	free   []Target
}

// makeTargets also counts the addresses that service ports have, of both families.
func makeTargets(services []model.Service, f Family) (all *targets, addresses int) {
	ports := 0
	for i := range services {
		s := &services[i]
		ports += len(s.Ports)
		addresses += len(s.Ports) * (len(s.VIPs) + len(s.ExternalIPs) + len(s.ClusterIPs))
	}
	return &targets{f, make([]Target, ports)}, addresses
}

func (t *targets) next(svc *model.Service, sp *model.ServicePort) *Target {
	next := &t.free[0]
	t.free = t.free[1:]
	*next = Target{Service: svc, ServicePort: sp, Destinations: destinations(sp, t.family)}
	return next
}

// destinations are those of one family, which stand together since they are ordered by address.
func destinations(sp *model.ServicePort, f Family) []model.Destination {
	v6 := sort.Search(len(sp.Destinations), func(i int) bool { return !sp.Destinations[i].Addr.Addr().Is4() })
	if f == IPv4 {
		return sp.Destinations[:v6]
	}
	return sp.Destinations[v6:]
}

func (p *Plan) claimNodePort(t *Target) {
	if sp := t.ServicePort; sp.NodePort != 0 && len(p.NodePortAddresses) > 0 {
		restricted := t.Service.SourceRanges != nil && p.SourceRangesOnNodePorts
		p.NodePorts = append(p.NodePorts, Entry{sp.Protocol, sp.NodePort, restricted, t})
	}
}

func (p *Plan) claim(claims []claim, t *Target) []claim {
	add := func(addrs []netip.Addr, own, restricted bool) {
		for _, a := range addrs {
			if p.Family.Has(a) {
				claims = append(claims, claim{a, own, len(claims), Entry{t.ServicePort.Protocol, t.ServicePort.Port, restricted, t}})
			}
		}
	}
	add(t.Service.VIPs, true, t.Service.SourceRanges != nil)
	add(t.Service.ExternalIPs, true, false)
	add(t.Service.ClusterIPs, false, false)
	return claims
}

// settle makes the addresses of claims, which are ordered, the winning ones first.
func (p *Plan) settle(claims []claim) {
	entries := make([]Entry, 0, len(claims)) // of all addresses
	p.Addresses = make([]Address, 0, distinct(claims))
	for len(claims) > 0 {
		a := Address{Addr: claims[0].addr}
		first := len(entries)
		n := 0
		for ; n < len(claims) && claims[n].addr == a.Addr; n++ {
			a.Own = a.Own || claims[n].own
			if len(entries) == first || entries[len(entries)-1].compare(claims[n].Entry) != 0 {
				entries = append(entries, claims[n].Entry)
			}
		}
		a.Entries = entries[first:len(entries):len(entries)]
		if a.Own { // what is routed here, by whomever, moves with no group
			a.Group = p.group(a.Addr)
		}
		p.Addresses, claims = append(p.Addresses, a), claims[n:]
	}
}

func distinct(claims []claim) (n int) {
	for i := range claims {
		if i == 0 || claims[i].addr != claims[i-1].addr {
			n++
		}
	}
	return n
}

// compare orders the entries of an address.
func (e Entry) compare(other Entry) int {
	return cmp.Or(cmp.Compare(e.Protocol, other.Protocol), cmp.Compare(e.Port, other.Port))
}

// order orders entries, of which the first of the same protocol and port stays.
func order(entries []Entry) []Entry {
	slices.SortStableFunc(entries, Entry.compare)
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.compare(b) == 0 })
}
