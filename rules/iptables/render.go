// Package iptables renders a plan as chains of iptables: trees that lead a new connection to its service port, and the rules
// that choose its endpoint, its source address, and what is refused. It is pure; package rules writes the chains to the kernel.
package iptables

import (
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// Render computes the rules for a plan. It is pure: equal plans give equal bytes.
func Render(p *plan.Plan) Ruleset { return new(Renderer).Render(p) }

// A Renderer renders one plan after the other, and keeps what does not change. The zero value works. It is for one goroutine.
type Renderer struct {
	made        setting
	nat, filter map[string]*kept // chains of the tables
	round       int
}

// setting is what all chains depend on.
type setting struct {
	family      plan.Family
	owner, seed uint32
}

// Render gives the same as the function Render, with the chains of the last plan where nothing about them changed.
func (k *Renderer) Render(p *plan.Plan) Ruleset {
	if s := (setting{p.Family, p.Owner(), p.HashSeed}); k.nat == nil || k.made != s {
		k.made, k.nat, k.filter = s, map[string]*kept{}, map[string]*kept{}
	}
	k.round++
	r := renderer{Plan: p, dialect: dialectOf(p.Family),
		nat: &builder{name: "nat", kept: k.nat, round: k.round}, filter: &builder{name: "filter", kept: k.filter, round: k.round}}
	r.services()
	r.nodePorts()
	r.postrouting()
	r.filters()
	for _, all := range []map[string]*kept{k.nat, k.filter} {
		maps.DeleteFunc(all, func(_ string, c *kept) bool { return c.round != k.round })
	}
	slices.SortFunc(r.sets, Set.compare)
	// filter first: what the nat table lets in is already guarded, and accepted where the policy is to drop.
	return Ruleset{Family: p.Family, Sets: slices.Compact(r.sets), Tables: []Table{r.filter.table(), r.nat.table()}}
}

// A renderer turns one plan into chains.
type renderer struct {
	*plan.Plan
	*dialect
	nat, filter *builder
	sets        []Set
}

// services writes what PREROUTING and OUTPUT jump to: Addresses first, then NodePorts.
func (r *renderer) services() {
	root := r.nat.chain("SALLY-SERVICES")
	miss := ""
	if len(r.NodePorts) > 0 {
		miss = "-g SALLY-NODEPORTS"
	}
	if len(r.Addresses) > 0 {
		tree{b: r.nat, name: "SALLY-VIP", by: r.byDestination(), write: r.address, stop: r.endAddresses, miss: miss, keep: true}.
			enter(root, "-g", r.addressItems())
	}
	if miss != "" {
		root.rule(miss)
	}
}

func (r *renderer) addressItems() []item {
	items := make([]item, len(r.Addresses))
	refuses := false
	for i, a := range r.Addresses {
		it := item{key: addrKey(a.Addr), bits: r.Family.Bits(), entries: a.Entries, group: a.Group, own: a.Own}
		if it.rules = r.prepare(it); it.rules > leafRules {
			it.rules = len(byProtocol(a.Entries))
		}
		items[i] = it
		refuses = refuses || !a.Own
	}
	if refuses {
		r.nat.chain(refuseChain).rule(setMark(r.Owner() | verdictReject))
	}
	return items
}

const (
	refuseChain = "SALLY-REFUSE"
	refuse      = "-g " + refuseChain
)

// endAddresses ends the walk for the addresses of a leaf: NodePorts are not served there, and a cluster IP has no other ports.
func (r *renderer) endAddresses(c *chain, items []item) {
	var own, routed []netip.Addr
	for _, it := range items {
		if a := it.key.addr(it.bits); it.own {
			own = append(own, a)
		} else {
			routed = append(routed, a)
		}
	}
	for _, p := range merge(own) {
		c.rule("-d", p.String(), "-j RETURN")
	}
	for _, p := range merge(routed) {
		c.rule("-d", p.String(), refuse)
	}
}

// address writes the rules of one address: inline, or as a tree over its ports where there are many.
func (r *renderer) address(c *chain, it item) {
	match := "-d " + netip.PrefixFrom(it.key.addr(it.bits), it.bits).String()
	rules := 0
	for _, e := range it.entries {
		rules += r.rulesOf(e)
	}
	if rules > leafRules {
		r.ports(c, match, it)
		return
	}
	for _, e := range it.entries {
		r.send(c, match+" "+portMatch(protocol(e.Protocol), e.Port, e.Port), e, it.group)
	}
}

// ports writes a tree for each protocol of an address, and the rules that lead there.
func (r *renderer) ports(c *chain, match string, it item) {
	for _, entries := range byProtocol(it.entries) {
		proto := protocol(entries[0].Protocol)
		name, by := "SALLY-"+addressName(it.key.addr(it.bits))+"-"+proto[:1], space(byPort(proto))
		if r.Family == plan.IPv6 {
			by = shortPort{byPort(proto)}
		}
		items, miss := r.portItems(entries, it.group), ""
		if !it.own {
			miss = refuse
		}
		c.rule(match, by.match(items), "-g", name)
		tree{b: r.nat, name: name, by: by, write: r.port, miss: miss, keep: true}.build(items)
	}
}

// addressName stands for an address in a chain's name.
func addressName(a netip.Addr) string {
	if a.Is4() {
		return hex.EncodeToString(a.AsSlice())
	}
	return digest(digestLength, a.String())
}

// nodePorts writes the way to the service ports by NodePort, at the edge's own addresses.
func (r *renderer) nodePorts() {
	if len(r.NodePorts) == 0 {
		return
	}
	root := r.nat.chain("SALLY-NODEPORTS")
	for _, p := range r.unserved {
		root.rule("-d", p.String(), "-j RETURN")
	}
	// An answer to one of these may have any port: its connection is known to another edge, or was.
	for _, p := range merge(r.Held) {
		root.rule("-d", p.String(), "-j RETURN")
	}
	for _, entries := range byProtocol(r.NodePorts) {
		proto := protocol(entries[0].Protocol)
		items := r.portItems(entries, 0)
		for _, it := range items {
			r.prepare(it)
		}
		name := "SALLY-" + strings.ToUpper(proto)
		for _, at := range r.NodePortAddresses {
			root.rule("-d", at.String(), byPort(proto).match(items), "-m addrtype --dst-type LOCAL -g", name)
		}
		tree{b: r.nat, name: name, by: byPort(proto), write: r.port, keep: true}.build(items)
	}
}

// byProtocol divides entries, which are ordered by protocol.
func byProtocol(entries []plan.Entry) (parts [][]plan.Entry) {
	for len(entries) > 0 {
		n := slices.IndexFunc(entries, func(e plan.Entry) bool { return e.Protocol != entries[0].Protocol })
		if n < 0 {
			n = len(entries)
		}
		parts, entries = append(parts, entries[:n]), entries[n:]
	}
	return parts
}

// protocol is one as iptables spells it.
func protocol(p model.Protocol) string { return strings.ToLower(string(p)) }

func (r *renderer) portItems(entries []plan.Entry, group uint8) []item {
	items := make([]item, len(entries))
	for i, e := range entries {
		items[i] = item{key: portKey(e.Port), bits: 16, rules: r.rulesOf(e), entries: entries[i : i+1], group: group}
	}
	return items
}

// port writes the rules of one port.
func (r *renderer) port(c *chain, it item) {
	e := it.entries[0]
	r.send(c, portMatch(protocol(e.Protocol), e.Port, e.Port), e, it.group)
}
