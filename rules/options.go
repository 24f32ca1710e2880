// Package rules keeps the kernel's L4 dataplane in step with a model.Snapshot: iptables rules, the VIPs on a link
// of our own, and the routes to the nodes' pods.
//
// Render is pure: equal snapshots render equal bytes. Kernel applies them with one iptables-restore --noflush a
// table, so that Sallyport owns exactly the chains named SALLY-* and never touches a rule, route or address that it
// did not make. README.md has the packets' way through the chains.
package rules

import (
	"cmp"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

// A Backend is a flavour of iptables: the same command line over one of two kernel interfaces.
type Backend string

// The backends. Rules of one are invisible to the other's tools, but the kernel runs both.
const (
	BackendAuto   Backend = "auto"   // whichever of the two the command iptables is
	BackendNFT    Backend = "nft"    // iptables-nft, over nf_tables
	BackendLegacy Backend = "legacy" // iptables-legacy, over ip_tables
)

// other is the one of the two that b is not.
func (b Backend) other() Backend {
	if b == BackendLegacy {
		return BackendNFT
	}
	return BackendLegacy
}

// SNAT says when the source address of a forwarded connection is replaced by one of the edge.
type SNAT string

// SNATAlways replaces the source of every connection, by MASQUERADE: nodes need no route to the clients.
const SNATAlways SNAT = "always"

// DefaultLink is the link that VIPs stand on.
const DefaultLink = "sally0"

// Options are the settings of the kernel dataplane. The zero value works.
type Options struct {
	// Backend is the iptables flavour; empty is BackendAuto.
	Backend Backend
	// NodePortAddresses are where NodePorts answer, among the edge's own addresses. Empty means on each of them.
	// Loopback addresses and VIPs are always left out.
	NodePortAddresses []netip.Prefix
	// SNAT is SNATAlways, also when empty.
	SNAT SNAT
	// HashSeed seeds the choice of endpoint. Edges with equal seeds choose alike; who knows it can choose its endpoint.
	HashSeed uint32
	// Reach decides whether routes to the nodes' podCIDRs are kept: in pods and auto they are, in nodes not.
	Reach model.Reach
	// VIPPorts are the TCP ports that L7 serves on VIPs. Whatever else is sent to a VIP is refused, ICMP aside.
	VIPPorts []uint16
	// L7Ports are the TCP ports that L7 listens on: Inspect says how to open them.
	L7Ports []uint16
	// APIServers are addresses of API servers, which a Service or Node cannot take for itself.
	APIServers []netip.Addr
	// Link is the name of the link for VIPs; empty is DefaultLink.
	Link string
	// Mark is the top byte of the packet and connection marks that are Sallyport's; 0 is DefaultMark.
	Mark uint8
	// Router says that this machine forwards for others too. Without it nothing but Sallyport's connections is forwarded.
	// Kernel finds it out by itself: forwarding was on before Sallyport came.
	Router bool
	// Log takes what an operator should know; nil discards it.
	Log *slog.Logger
	// Metrics registers sallyport_rules_*; nil leaves them unregistered.
	Metrics prometheus.Registerer

	// routed are the networks that Kernel has routes of ours to; in a Router they are closed to others.
	routed []netip.Prefix
}

func (o Options) withDefaults() Options {
	o.Backend = cmp.Or(o.Backend, BackendAuto)
	o.SNAT = cmp.Or(o.SNAT, SNATAlways)
	o.Reach = cmp.Or(o.Reach, model.ReachAuto)
	o.Link = cmp.Or(o.Link, DefaultLink)
	o.Mark = cmp.Or(o.Mark, DefaultMark)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
