package iptables

import (
	"net/netip"
	"strconv"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

const (
	// maxRate is the most that hashlimit counts in a second (XT_HASHLIMIT_SCALE_v2).
	maxRate = 1_000_000
	// clientTable sizes what tells clients apart: 16 KiB for a Service, and 262,144 clients in 2 s. Where there are more, new ones are
	// dropped. After 2 s a client has all of its burst again, so that it need not be known any longer.
	clientTable = "--hashlimit-htable-size 2048 --hashlimit-htable-max 262144 --hashlimit-htable-expire 2000"

	limitsRoot  = "SALLY-LIMITS"
	limitsPorts = "SALLY-LIM-PORTS" // no chain of a Service: their names go on in lower case
)

func isLimited(s *model.Service) bool { return s.Limits != nil && *s.Limits != model.Limits{} }

// limited are those of the entries that are held to limits.
func limited(entries []plan.Entry) (out []plan.Entry) {
	for _, e := range entries {
		if len(e.Destinations) > 0 && isLimited(e.Service) {
			out = append(out, e)
		}
	}
	return out
}

// limits writes what holds connections to limits, and has the chains lead their first packets there. The translation of the
// address has been chosen by then, so the service port is found by where the client connected to.
//
// This is the filter table's, not the nat table's: whenever a table of iptables-legacy changes, connlimit forgets what it has
// counted, and the nat table changes with every endpoint.
func (r *renderer) limits(from ...*chain) {
	var items []item
	for _, a := range r.Addresses {
		if entries := limited(a.Entries); len(entries) > 0 {
			items = append(items, item{key: addrKey(a.Addr), bits: r.Family.Bits(), rules: len(entries), entries: entries})
		}
	}
	nodePorts := limited(r.NodePorts)
	if len(items)+len(nodePorts) == 0 {
		return
	}
	for _, c := range from {
		c.rule(isMarked(r.Owner()|verdictSent|verdictLimited, verdictMask), "-j", limitsRoot)
	}
	root, miss := r.filter.chain(limitsRoot), ""
	if len(nodePorts) > 0 {
		miss = "-g " + limitsPorts
	}
	if len(items) > 0 {
		tree{b: r.filter, name: "SALLY-LIM-VIP", by: byAddr{originally, r.Family.Bits()}, write: r.limitAddress, miss: miss, keep: true}.enter(root, "-g", items)
	}
	if miss != "" {
		root.rule(miss)
		r.limitNodePorts(nodePorts)
	}
	r.limitServices(items, nodePorts)
}

// limitNodePorts writes the way of what was not sent to an address of a Service.
func (r *renderer) limitNodePorts(nodePorts []plan.Entry) {
	c := r.filter.chain(limitsPorts)
	for _, entries := range byProtocol(nodePorts) {
		by := originalPort{byPort(protocol(entries[0].Protocol))}
		items := r.portItems(entries, 0)
		name := "SALLY-LIM-" + string(entries[0].Protocol)
		c.rule(by.match(items), "-g", name)
		tree{b: r.filter, name: name, by: by, write: r.limitPort, keep: true}.build(items)
	}
}

// originally matches the address that the client connected to.
const originally = "-m conntrack --ctorigdst"

// originalPort is the port that the client connected to.
type originalPort struct{ byPort }

func (p originalPort) match(block []item) string {
	return "-p " + string(p.byPort) + " -m conntrack --ctorigdstport " + portRange(block[0].key.port(), block[len(block)-1].key.port())
}

func (r *renderer) limitAddress(c *chain, it item) {
	if it.rules <= leafRules {
		for _, e := range it.entries {
			c.rule(r.originally(it), "--ctorigdstport", strconv.Itoa(int(e.Port)), "-p", protocol(e.Protocol), "-g", limitsChain(e.Service))
		}
		return
	}
	for _, entries := range byProtocol(it.entries) {
		proto := protocol(entries[0].Protocol)
		name := "SALLY-L" + addressName(it.key.addr(it.bits)) + "-" + proto[:1]
		c.rule(r.originally(it), "-p", proto, "-g", name)
		tree{b: r.filter, name: name, by: shortPort{originalPort{byPort(proto)}}, write: r.limitPort}.build(r.portItems(entries, 0))
	}
}

func (r *renderer) originally(it item) string {
	return originally + " " + netip.PrefixFrom(it.key.addr(it.bits), it.bits).String()
}

func (r *renderer) limitPort(c *chain, it item) {
	e := it.entries[0]
	c.rule(originalPort{byPort(protocol(e.Protocol))}.match([]item{it}), "-g", limitsChain(e.Service))
}

// limitServices writes the chains of the Services, of each once.
func (r *renderer) limitServices(items []item, nodePorts []plan.Entry) {
	prepare := func(entries []plan.Entry) {
		for i, e := range entries {
			r.filter.once(limitsChain(e.Service), item{entries: entries[i : i+1]}, func() { r.limit(e.Service) })
		}
	}
	for _, it := range items {
		prepare(it.entries)
	}
	prepare(nodePorts)
}

func limitsChain(s *model.Service) string {
	return "SALLY-LIM-" + digest(digestLength, scope(s.Ref), s.Ref.Name)
}

// limit writes the chain that drops what exceeds the limits, for all entries of a Service. A hashlimit of another rate needs
// another name: a table that stands keeps its rate.
func (r *renderer) limit(s *model.Service) {
	c, l := r.filter.chain(limitsChain(s)), s.Limits
	if l.NewPerSecond != 0 {
		rate := strconv.Itoa(int(min(l.NewPerSecond, maxRate)))
		c.rule("-m hashlimit --hashlimit-above", rate+"/sec --hashlimit-burst", rate, "--hashlimit-mode srcip --hashlimit-srcmask", r.clientMask,
			clientTable, "--hashlimit-name", Prefix+digest(digestLength, scope(s.Ref), s.Ref.Name, rate), "-j DROP")
	}
	if l.PerClient != 0 {
		c.rule("-m connlimit --connlimit-above", strconv.Itoa(int(l.PerClient)), "--connlimit-mask", r.clientMask, "--connlimit-saddr -j DROP")
	}
	if l.Total != 0 {
		c.rule("-m connlimit --connlimit-above", strconv.Itoa(int(l.Total)), "--connlimit-mask 0 --connlimit-saddr -j DROP")
	}
}
