package rules

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sallyport/watcher/model"
)

// Render computes the rules for a snapshot. It is pure: equal snapshots and options give equal bytes.
//
// At this cut it serves IPv4; VIPs and destinations of the other family are passed over.
func Render(s *model.Snapshot, o Options) Ruleset {
	r := renderer{o: o.withDefaults(), nat: &builder{name: "nat"}, filter: &builder{name: "filter"}}
	r.collect(s)
	r.services()
	r.nodePorts()
	r.postrouting()
	r.filters(s)
	// filter first: what the nat table lets in is already guarded, and accepted where the policy is to drop.
	return Ruleset{Tables: []Table{r.filter.table(), r.nat.table()}}
}

// A renderer turns one snapshot into chains.
type renderer struct {
	o           Options
	nat, filter *builder
	vips        []vip
	ports       map[string][]portTarget // NodePorts by protocol, ordered
}

// A vip is an address with the service ports that it serves, ordered by port within a protocol.
type vip struct {
	addr  netip.Addr
	ports map[string][]portTarget
}

type portTarget struct {
	port uint16
	*target
}

// protocols are those of model.Protocol, in lower case and in the order of rendering.
var protocols = [...]string{"tcp", "udp"}

// collect orders the snapshot's service ports by what they listen on. Of two that claim the same, the first one has it.
func (r *renderer) collect(s *model.Snapshot) {
	r.ports = map[string][]portTarget{}
	vips := map[netip.Addr]vip{}
	for i := range s.Services {
		svc := &s.Services[i]
		for j := range svc.Ports {
			sp := &svc.Ports[j]
			t := newTarget(svc, sp)
			if sp.NodePort != 0 {
				r.ports[t.protocol] = append(r.ports[t.protocol], portTarget{sp.NodePort, t})
			}
			for _, a := range svc.VIPs {
				if !a.Is4() {
					continue
				}
				if _, ok := vips[a]; !ok {
					vips[a] = vip{a, map[string][]portTarget{}}
				}
				vips[a].ports[t.protocol] = append(vips[a].ports[t.protocol], portTarget{sp.Port, t})
			}
		}
	}
	if len(r.nodePortAddresses()) == 0 { // all given are of the other family
		r.ports = nil
	}
	order(r.ports)
	r.vips = slices.SortedFunc(maps.Values(vips), func(a, b vip) int { return a.addr.Compare(b.addr) })
	for _, v := range r.vips {
		order(v.ports)
	}
}

func order(ports map[string][]portTarget) {
	for p, list := range ports {
		slices.SortStableFunc(list, func(a, b portTarget) int { return int(a.port) - int(b.port) })
		ports[p] = slices.CompactFunc(list, func(a, b portTarget) bool { return a.port == b.port })
	}
}

// services writes what PREROUTING and OUTPUT jump to: VIPs first, then NodePorts.
func (r *renderer) services() {
	root := r.nat.chain("SALLY-SERVICES")
	miss := ""
	if len(r.ports) > 0 {
		miss = "-g SALLY-NODEPORTS"
	}
	if len(r.vips) > 0 {
		items := make([]item, len(r.vips))
		for i, v := range r.vips {
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

// vipItem gives the rules of one VIP: inline, or by a tree over its ports where there are many.
func (r *renderer) vipItem(v vip) item {
	it := item{key: addrKey(v.addr), bits: v.addr.BitLen()}
	for _, list := range v.ports {
		for _, p := range list {
			it.rules += p.rules()
		}
	}
	write := r.vipInline
	if it.rules > leafRules {
		it.rules, write = len(v.ports), r.vipTrees
	}
	it.write = func(c *chain) { write(c, "-d "+v.addr.String()+"/32", v) }
	return it
}

func (r *renderer) vipInline(c *chain, match string, v vip) {
	for _, proto := range protocols {
		for _, p := range v.ports[proto] {
			r.send(c, match+" "+portMatch(proto, p.port, p.port), p.target)
		}
	}
}

func (r *renderer) vipTrees(c *chain, match string, v vip) {
	for _, proto := range protocols {
		if list := v.ports[proto]; len(list) > 0 {
			name := fmt.Sprintf("SALLY-%s-%s", hex.EncodeToString(v.addr.AsSlice()), proto[:1])
			items := r.portItems(proto, list)
			c.rule(match, byPort(proto).match(items), "-g", name)
			tree{b: r.nat, name: name, by: byPort(proto)}.build(items)
		}
	}
}

// nodePorts writes the way to the service ports by NodePort, at the edge's own addresses.
func (r *renderer) nodePorts() {
	if len(r.ports) == 0 {
		return
	}
	root := r.nat.chain("SALLY-NODEPORTS")
	// What is sent from loopback to loopback cannot leave the machine (net.ipv4.conf.*.route_localnet).
	root.rule("-d 127.0.0.0/8 -j RETURN")
	for _, proto := range protocols {
		list := r.ports[proto]
		if len(list) == 0 {
			continue
		}
		items := r.portItems(proto, list)
		name := "SALLY-" + strings.ToUpper(proto)
		for _, at := range r.nodePortAddresses() {
			root.rule(at, byPort(proto).match(items), "-m addrtype --dst-type LOCAL -g", name)
		}
		tree{b: r.nat, name: name, by: byPort(proto)}.build(items)
	}
}

// nodePortAddresses gives a match for each network of NodePort addresses, or one that takes in all.
func (r *renderer) nodePortAddresses() (matches []string) {
	if len(r.o.NodePortAddresses) == 0 {
		return []string{""}
	}
	for _, p := range r.o.NodePortAddresses {
		if p.Addr().Is4() {
			matches = append(matches, "-d "+p.Masked().String())
		}
	}
	return matches
}

func (r *renderer) portItems(proto string, list []portTarget) []item {
	items := make([]item, len(list))
	for i, p := range list {
		match := portMatch(proto, p.port, p.port)
		items[i] = item{key: portKey(p.port), bits: 16, rules: p.rules(), write: func(c *chain) {
			r.send(c, match, p.target)
		}}
	}
	return items
}

// postrouting writes the end of the nat table's way: what is marked gets its connection marked as ours, loses its own
// mark, and takes the edge's address.
func (r *renderer) postrouting() {
	c := r.nat.chain("SALLY-POSTROUTING")
	c.rule("-m mark ! --mark", markValue(r.o.owner()|verdictMasquerade, verdictMask), "-j RETURN")
	c.rule("-j CONNMARK --set-xmark", markValue(r.o.owner(), ownerMask))
	c.rule("-j MARK --set-xmark", markValue(0, wholeMask))
	c.rule("-j MASQUERADE --random-fully")
}
