package conntrack

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// UDP has no connections: the kernel keeps an entry for as long as a client goes on sending, and with it the endpoint that
// was chosen first, though it be long gone. So such an entry is deleted, and the next datagram chooses anew. An entry that is
// still right is never touched, whenever it was made: to lose it would send a client elsewhere (kubernetes/kubernetes#122740).

// stale says whether an entry of UDP leads where it must no longer. swept is the index by which stale entries were deleted
// last, nil at first; ours says that the flow has Sallyport's mark.
//
// At a service port, an entry must lead to a destination. That also holds where there is none
// (kubernetes/kubernetes#139628), and for what came before the Service, which was not translated at all. What else was
// translated by us, or for a service port that was there before, belongs to one that is gone.
func (x *index) stale(f *flow, swept *index, ours bool) bool {
	d := destination{f.original.dst, f.original.protocol}
	if p := x.find(d); p != nil {
		return !p.leadsTo(f.reply.src)
	}
	return f.translated() && (ours || swept != nil && swept.find(d) != nil)
}

func (p *servicePort) leadsTo(a netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(p.destinations, a, func(d model.Destination, a netip.AddrPort) int { return d.Addr.Compare(a) })
	return found
}

// outdated says whether there can be entries of UDP that are stale by x, given that there are none by swept. More
// destinations make none stale.
func (x *index) outdated(swept *index) bool {
	return swept == nil || !slices.Equal(x.local, swept.local) ||
		differs(x.addresses, swept.addresses, func(d destination) uint8 { return d.protocol }) ||
		differs(x.nodePorts, swept.nodePorts, func(p nodePort) uint8 { return p.protocol })
}

// differs says whether one of the two has a place of UDP that the other one has not, or now lost a destination.
func differs[K comparable](now, before map[K]*servicePort, protocol func(K) uint8) bool {
	for k, p := range now {
		if protocol(k) == unix.IPPROTO_UDP && (before[k] == nil || !p.leadsToAll(before[k])) {
			return true
		}
	}
	for k := range before {
		if protocol(k) == unix.IPPROTO_UDP && now[k] == nil {
			return true
		}
	}
	return false
}

func (p *servicePort) leadsToAll(before *servicePort) bool {
	return !slices.ContainsFunc(before.destinations, func(d model.Destination) bool { return !p.leadsTo(d.Addr) })
}
