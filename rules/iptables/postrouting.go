package iptables

import (
	"strconv"

	"sallyport/rules/plan"
)

const (
	snatChain   = "SALLY-SNAT"
	insideChain = "SALLY-NET"
)

// postrouting writes the end of the nat table's way: what is marked gets its connection marked as ours, loses its own
// mark, and gets the source address that leads its answers back here.
func (r *renderer) postrouting() {
	c := r.nat.chain("SALLY-POSTROUTING")
	c.rule("-m mark ! --mark", markValue(r.Owner()|verdictSent, sentMask), "-j RETURN")
	c.rule("-j CONNMARK --set-xmark", markValue(r.Owner(), plan.OwnerMask))
	if !r.KeepSource && !r.hasSNAT() {
		r.masquerade(c)
		return
	}
	// The edge's own connections end with it: answers come to the edge itself, not to where the group is.
	c.rule("-m addrtype --src-type LOCAL -g SALLY-MASQUERADE")
	r.masquerade(r.nat.chain("SALLY-MASQUERADE"))
	r.translate()
	switch {
	case !r.KeepSource:
		c.rule("-g", snatChain)
	case len(r.Inside) == 0:
		c.rule(setMark(0))
	default:
		r.inside(c)
	}
}

func (r *renderer) hasSNAT() bool {
	for _, s := range r.SNAT {
		if s.First.IsValid() {
			return true
		}
	}
	return false
}

// inside writes the tree of those who cannot keep their source address.
func (r *renderer) inside(c *chain) {
	c.rule("-g", insideChain)
	source := r.bySource()
	tree{b: r.nat, name: insideChain, by: source, miss: setMark(0), write: func(c *chain, it item) {
		c.rule(source.match([]item{it}), "-g", snatChain)
	}}.build(prefixItems(r.Inside))
}

// translate writes the chain that replaces source addresses: by those of the group, or else by the edge's own. Ports stay,
// and of a group's addresses a client keeps one, if that is free: on any edge, the connection gets what it had.
func (r *renderer) translate() {
	if r.KeepSource && len(r.Inside) == 0 {
		return
	}
	c := r.nat.chain(snatChain)
	for i, s := range r.SNAT {
		if !s.First.IsValid() {
			continue
		}
		to := s.First.String()
		if s.Last != s.First {
			to += "-" + s.Last.String()
		}
		group := r.nat.chain(snatChain + "-" + strconv.Itoa(i))
		c.rule(isMarked(uint32(i)<<groupShift, groupMask), "-g", group.name)
		group.rule(setMark(0))
		group.rule("-j SNAT --to-source", to, "--persistent")
	}
	r.masquerade(c)
}

func (r *renderer) masquerade(c *chain) {
	c.rule(setMark(0))
	c.rule("-j MASQUERADE --random-fully")
}
