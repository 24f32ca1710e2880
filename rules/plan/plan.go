// Package plan works out what the kernel is to do with connections from outside: which address, protocol and port leads to
// which destinations, from whom, and with whose source address. It does so for one address family at a time, and leaves
// open by what kind of rules: packages iptables and nftables render the same Plan.
//
// New is pure: equal snapshots and options give equal plans.
package plan

import (
	"net/netip"
	"slices"
	"time"

	"sallyport/watcher/model"
)

// A Family is an IP version.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families are both, in the order in which they are programmed.
var Families = [...]Family{IPv4, IPv6}

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Has says whether an address is of the family.
func (f Family) Has(a netip.Addr) bool { return FamilyOf(a) == f }

// Bits is the length of an address.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

// String gives "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv4 {
		return "IPv4"
	}
	return "IPv6"
}

// A Plan is what the kernel is to do with packets of one family.
type Plan struct {
	Family Family
	// Addresses are those that Services have to themselves, ordered.
	Addresses []Address
	// NodePorts are the service ports at NodePortAddresses, ordered by protocol and port.
	NodePorts []Entry
	// NodePortAddresses are networks of which the edge's own addresses answer for NodePorts, ordered and disjoint. Loopback
	// and Addresses are never among them.
	NodePortAddresses []netip.Prefix
	// Inside are the networks of nodes and pods, ordered and disjoint. Connections from there always lose their source
	// address: the answer would otherwise not come back to the edge.
	Inside []netip.Prefix
	// KeepSource says that connections from elsewhere keep theirs.
	KeepSource bool
	// SNAT are the source addresses that connections get, by Address.Group. The first entry is the zero Range, and so are those
	// of groups that have none in this family: the edge's own address is taken (MASQUERADE).
	SNAT []Range
	// Held are the addresses on the nodes' leg that move with a group: those of SNAT, and the nodes' gateways. Ordered.
	Held []netip.Addr
	// Answers are where answers of destinations come from, ordered. What comes from there and that conntrack cannot place is
	// dropped: to refuse it would end a connection that another edge knows, or knew.
	Answers []Source
	// Problems are what Services ask for and do not get, the oldest first.
	Problems []model.Problem

	Options
}

// An Address is what clients connect to.
type Address struct {
	Addr netip.Addr
	// Own says that it stands on the edge's link for VIPs: ports that no Service has are then the edge's own, and guarded.
	// Of a cluster IP, which is routed here, they are nobody's.
	Own bool
	// Group indexes Plan.SNAT. It is 0 of what is not Own.
	Group   uint8
	Entries []Entry // ordered by protocol and port
}

// An Entry is a port of an Address, or a NodePort.
type Entry struct {
	Protocol model.Protocol
	Port     uint16
	// Restricted says that only Target's source ranges may connect.
	Restricted bool
	*Target
}

// A Target is a service port: where its connections go. All entries of a service port have the same one.
type Target struct {
	Service     *model.Service
	ServicePort *model.ServicePort
	// Destinations are those of the family, ordered by address. None means that connections are refused.
	Destinations []model.Destination

	sticky time.Duration
}

// A Source is where packets come from.
type Source struct {
	Prefix netip.Prefix
	// FirstPort and LastPort are the TCP source ports meant, or 0 for all that comes from there.
	FirstPort, LastPort uint16
}

// A Range is a range of addresses of one family; the zero Range is none.
type Range struct{ First, Last netip.Addr }

// New plans for a family.
func New(s *model.Snapshot, f Family, o Options) *Plan {
	p := &Plan{Family: f, Options: o, KeepSource: o.keepsSource(), SNAT: make([]Range, 1, 1+len(o.Groups))}
	for _, g := range o.groups() {
		p.SNAT = append(p.SNAT, g.snat(f))
		p.Held = append(p.Held, g.held(f)...)
	}
	slices.SortFunc(p.Held, netip.Addr.Compare)
	p.Held = slices.Compact(p.Held)
	p.NodePortAddresses = Disjoint(ofFamily(f, o.NodePortAddresses))
	p.Inside = inside(s, f)
	p.Answers = answers(s, f)
	p.collect(s.Services)
	return p
}

// Sticky is for how long a client keeps its destination after its last new connection, where the Service asks for just that
// (model.Affinity.Exact) and gets it, or 0. Where it does not, as it is one of Plan.Problems, the client's address alone decides.
func (t *Target) Sticky() time.Duration { return t.sticky }

// BySource says that the client's address alone chooses the destination, rather than its address and port.
func (t *Target) BySource() bool { return t.Service.Affinity != nil }

// Sources are the networks that may connect to a Restricted entry: the source ranges of its Service, of the family.
func (p *Plan) Sources(t *Target) []netip.Prefix {
	return ofFamily(p.Family, t.Service.SourceRanges.Prefixes)
}
