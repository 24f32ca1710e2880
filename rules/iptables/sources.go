package iptables

import (
	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// countSources counts the source ranges of the family.
func (r *renderer) countSources(t *plan.Target) (n int) {
	for _, p := range t.Service.SourceRanges.Prefixes {
		if r.Family.Has(p.Addr()) {
			n++
		}
	}
	return n
}

// isClosed says whether nobody may connect.
func (r *renderer) isClosed(e plan.Entry) bool { return e.Restricted && r.countSources(e.Target) == 0 }

func sourcesChain(s *model.Service) string {
	return "SALLY-SRC-" + digest(digestLength, scope(s.Ref), s.Ref.Name)
}

// sources writes the tree that marks who is outside the source ranges, for all entries of a Service.
func (r *renderer) sources(t *plan.Target) {
	name, drop := sourcesChain(t.Service), setMark(r.Owner()|verdictDrop)
	source := r.bySource()
	tree{b: r.nat, name: name, by: &numbered{space: source}, miss: drop, write: func(c *chain, it item) {
		c.rule(source.match([]item{it}), "-j RETURN")
	}}.build(prefixItems(r.Sources(t)))
}
