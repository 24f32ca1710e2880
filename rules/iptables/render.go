// Package iptables renders a plan as chains of iptables: trees that lead a new connection to its service port, and the rules
// that choose its endpoint, its source address, and what is refused. It is pure; package rules writes the chains to the kernel.
package iptables

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/rules/plan"
)

// Render computes the rules for a plan. It is pure: equal plans give equal bytes.
func Render(p *plan.Plan) Ruleset {
	r := renderer{Plan: p, nat: &builder{name: "nat"}, filter: &builder{name: "filter"}, spreads: map[*plan.Target]bool{}}
	r.services()
	r.nodePorts()
	r.postrouting()
	r.filters()
	// filter first: what the nat table lets in is already guarded, and accepted where the policy is to drop.
	return Ruleset{Family: p.Family, Tables: []Table{r.filter.table(), r.nat.table()}}
}

// A renderer turns one plan into chains.
type renderer struct {
	*plan.Plan
	nat, filter *builder
	spreads     map[*plan.Target]bool // whose tree of destinations is built
}

// services writes what PREROUTING and OUTPUT jump to: VIPs first, then NodePorts.
func (r *renderer) services() {
	root := r.nat.chain("SALLY-SERVICES")
	miss := ""
	if len(r.NodePorts) > 0 {
		miss = "-g SALLY-NODEPORTS"
	}
	if len(r.Addresses) > 0 {
		items := make([]item, len(r.Addresses))
		for i, v := range r.Addresses {
			items[i] = r.vipItem(v)
		}
		tree{b: r.nat, name: "SALLY-VIP", by: byDestination, stop: noNodePorts, miss: miss}.enter(root, items)
	}
	if miss != "" {
		root.rule(miss)
	}
}

// noNodePorts ends the walk for the VIPs of a leaf: NodePorts are not served there.
func noNodePorts(c *chain, vips []item) {
	addrs := make([]netip.Addr, len(vips))
	for i, v := range vips {
		addrs[i] = v.key.addr()
	}
	for _, p := range merge(addrs) {
		c.rule("-d", p.String(), "-j RETURN")
	}
}

// vipItem gives the rules of one address: inline, or by a tree over its ports where there are many.
func (r *renderer) vipItem(v plan.Address) item {
	it := item{key: addrKey(v.Addr), bits: v.Addr.BitLen()}
	for _, e := range v.Entries {
		it.rules += rulesOf(e)
	}
	write := r.vipInline
	if it.rules > leafRules {
		it.rules, write = len(byProtocol(v.Entries)), r.vipTrees
	}
	it.write = func(c *chain) { write(c, "-d "+netip.PrefixFrom(v.Addr, v.Addr.BitLen()).String(), v) }
	return it
}

func (r *renderer) vipInline(c *chain, match string, v plan.Address) {
	for _, e := range v.Entries {
		r.send(c, match+" "+portMatch(protocol(e), e.Port, e.Port), e)
	}
}

func (r *renderer) vipTrees(c *chain, match string, v plan.Address) {
	for _, entries := range byProtocol(v.Entries) {
		proto := protocol(entries[0])
		name := fmt.Sprintf("SALLY-%s-%s", hex.EncodeToString(v.Addr.AsSlice()), proto[:1])
		items := r.portItems(entries)
		c.rule(match, byPort(proto).match(items), "-g", name)
		tree{b: r.nat, name: name, by: byPort(proto)}.build(items)
	}
}

// nodePorts writes the way to the service ports by NodePort, at the edge's own addresses.
func (r *renderer) nodePorts() {
	if len(r.NodePorts) == 0 {
		return
	}
	root := r.nat.chain("SALLY-NODEPORTS")
	// What is sent from loopback to loopback cannot leave the machine (net.ipv4.conf.*.route_localnet).
	root.rule("-d 127.0.0.0/8 -j RETURN")
	for _, entries := range byProtocol(r.NodePorts) {
		proto := protocol(entries[0])
		items := r.portItems(entries)
		name := "SALLY-" + strings.ToUpper(proto)
		for _, at := range r.NodePortAddresses {
			root.rule("-d", at.String(), byPort(proto).match(items), "-m addrtype --dst-type LOCAL -g", name)
		}
		tree{b: r.nat, name: name, by: byPort(proto)}.build(items)
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

// protocol is an entry's, as iptables spells it.
func protocol(e plan.Entry) string { return strings.ToLower(string(e.Protocol)) }

func (r *renderer) portItems(entries []plan.Entry) []item {
	items := make([]item, len(entries))
	for i, e := range entries {
		match := portMatch(protocol(e), e.Port, e.Port)
		items[i] = item{key: portKey(e.Port), bits: 16, rules: rulesOf(e), write: func(c *chain) { r.send(c, match, e) }}
	}
	return items
}

// postrouting writes the end of the nat table's way: what is marked gets its connection marked as ours, loses its own
// mark, and takes the edge's address.
func (r *renderer) postrouting() {
	c := r.nat.chain("SALLY-POSTROUTING")
	c.rule("-m mark ! --mark", markValue(r.Owner()|verdictMasquerade, verdictMask), "-j RETURN")
	c.rule("-j CONNMARK --set-xmark", markValue(r.Owner(), plan.OwnerMask))
	c.rule("-j MARK --set-xmark", markValue(0, wholeMask))
	c.rule("-j MASQUERADE --random-fully")
}
