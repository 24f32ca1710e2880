// Package rules keeps the kernel's L4 dataplane in step with a model.Snapshot, in IPv4 and IPv6: rules, the VIPs on a link
// of our own, the routes to the nodes' pods, and connection tracking.
//
// What the rules are to do is planned in package plan, and rendered in iptables or nftables, all of them pure. Kernel applies that,
// and never touches a rule, route or address that Sallyport did not make. README.md has the packets' way through the chains.
package rules

import (
	"cmp"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/rules/plan"
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

// DefaultLink is the link that VIPs stand on.
const DefaultLink = "sally0"

// Options are the settings of the kernel dataplane. The zero value works.
type Options struct {
	// Options are what all kernel dataplanes share. Kernel finds out by itself whether this machine is a Router, and what is Routed.
	plan.Options
	// Dataplane is the kind of rules; empty is DataplaneIPTables.
	Dataplane Dataplane
	// Backend is the iptables flavour; empty is BackendAuto.
	Backend Backend
	// ConntrackMax is how many connections the kernel is to have room for; 0 goes by memory and cores.
	ConntrackMax uint32
	// Reach decides whether routes to the nodes' podCIDRs are kept: in pods and auto they are, in nodes not.
	Reach model.Reach
	// L7Ports are the TCP ports that L7 listens on: Inspect says how to open them.
	L7Ports []uint16
	// APIServers are addresses of API servers, which a Service or Node cannot take for itself.
	APIServers []netip.Addr
	// Link is the name of the link for VIPs; empty is DefaultLink.
	Link string
	// Log takes what an operator should know; nil discards it.
	Log *slog.Logger
	// Metrics registers sallyport_rules_*, sallyport_conntrack_* and sallyport_l4_*; nil leaves them unregistered.
	Metrics prometheus.Registerer
}

func (o Options) withDefaults() Options {
	o.Dataplane = cmp.Or(o.Dataplane, DataplaneIPTables)
	o.Backend = cmp.Or(o.Backend, BackendAuto)
	o.Reach = cmp.Or(o.Reach, model.ReachAuto)
	o.Link = cmp.Or(o.Link, DefaultLink)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
