package plan

import (
	"hash/fnv"
	"net/netip"
	"slices"
)

// SNAT says when the source address of a connection is replaced.
type SNAT string

// The settings of SNAT.
const (
	SNATAuto   SNAT = "auto"   // never if the ReturnPath is edge, else always
	SNATAlways SNAT = "always" // of every connection: nodes need no route to the clients
	SNATNever  SNAT = "never"  // only of connections from nodes and pods
)

// A ReturnPath is the way of answers.
type ReturnPath string

// The return paths.
const (
	ReturnDirect ReturnPath = "direct" // nodes answer clients by routes of their own
	ReturnEdge   ReturnPath = "edge"   // nodes route clients through the edge that has the group
)

// Options are the settings that every kernel dataplane shares. All edges have the same, but for NodePortAddresses, Router and
// Routed, which are of the machine.
type Options struct {
	// NodePortAddresses are where NodePorts answer, among the edge's own addresses. None means nowhere.
	NodePortAddresses []netip.Prefix
	// SourceRangesOnNodePorts has source ranges hold for NodePorts, too.
	SourceRangesOnNodePorts bool
	// SNAT is SNATAuto, also when empty.
	SNAT SNAT
	// ReturnPath is ReturnDirect, also when empty.
	ReturnPath ReturnPath
	// Groups are what VIPs are spread over, MaxGroups at most: more are as good as not there.
	Groups []Group
	// HashSeed seeds the choice of endpoint. Edges with equal seeds choose alike; who knows it can choose its endpoint.
	HashSeed uint32
	// Mark is the top byte of the packet and connection marks that are Sallyport's; 0 is DefaultMark.
	Mark uint8
	// VIPPorts are the TCP ports that L7 serves on VIPs. Whatever else is sent to a VIP is refused, ICMP aside.
	VIPPorts []uint16
	// Router says that this machine forwards for others too. Without it nothing but Sallyport's connections is forwarded.
	Router bool
	// Routed are the networks that we made routes to. In a Router they are closed to others.
	Routed []netip.Prefix
}

// DefaultMark is the top byte of Sallyport's marks where Options.Mark names no other: 'S'.
const DefaultMark = 0x53

// OwnerMask is the part of a mark that says whose it is. Connections keep it as their connmark, the other bits of which are
// left to others.
const OwnerMask = 0xff000000

// Owner is the connmark of our connections, under OwnerMask, and the base of our packet marks.
func (o Options) Owner() uint32 {
	if o.Mark == 0 {
		return DefaultMark << 24
	}
	return uint32(o.Mark) << 24
}

func (o Options) keepsSource() bool {
	return o.SNAT == SNATNever || o.SNAT != SNATAlways && o.ReturnPath == ReturnEdge
}

// MaxGroups is how many groups there are at most: they are counted by 4 bits of a mark, where 0 is none.
const MaxGroups = 15

func (o Options) groups() []Group { return o.Groups[:min(len(o.Groups), MaxGroups)] }

// A Group is what moves together from edge to edge: VIPs, and on the nodes' leg the addresses given here.
type Group struct {
	Name string
	// SNATAddresses are what connections to the group's VIPs get as their source, a range of each family at most.
	SNATAddresses []Range
	// NodesGateway are the addresses that nodes route clients through, one of each family at most.
	NodesGateway []netip.Addr
}

func (g Group) snat(f Family) Range {
	for _, r := range g.SNATAddresses {
		if f.Has(r.First) {
			return r
		}
	}
	return Range{}
}

// held lists all addresses of the group, of a family.
func (g Group) held(f Family) (out []netip.Addr) {
	if r := g.snat(f); r.First.IsValid() {
		for a := r.First; a.Compare(r.Last) <= 0; a = a.Next() {
			out = append(out, a)
		}
	}
	for _, a := range g.NodesGateway {
		if f.Has(a) {
			out = append(out, a)
		}
	}
	return out
}

// group chooses the group of an address, alike on all edges, by rendezvous hashing: a group more or less moves only the
// addresses that it gets or had.
func (o Options) group(a netip.Addr) uint8 {
	var best uint64
	var chosen uint8
	for i, g := range o.groups() {
		h := fnv.New64a()
		addr := a.As16()
		_, _ = h.Write(addr[:]) // a hash takes all
		_, _ = h.Write([]byte(g.Name))
		if score := mix(h.Sum64()); chosen == 0 || score > best {
			best, chosen = score, uint8(i+1)
		}
	}
	return chosen
}

// mix spreads a hash over all its bits (the finalizer of splitmix64): FNV leaves those of similar inputs alike.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// ofFamily are the prefixes of a family, masked.
func ofFamily(f Family, prefixes []netip.Prefix) (out []netip.Prefix) {
	for _, p := range prefixes {
		if f.Has(p.Addr()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// Disjoint orders prefixes and drops those that lie in another one.
func Disjoint(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	out := prefixes[:0]
	for _, p := range prefixes {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
