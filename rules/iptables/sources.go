package iptables

import (
	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

func sourcesChain(s *model.Service) string {
	return "SALLY-SRC-" + digest(digestLength, s.Ref.Namespace, s.Ref.Name)
}

// sources writes the tree that marks who is outside the source ranges, for all entries of a Service.
func (r *renderer) sources(t *plan.Target) {
	name, drop := sourcesChain(t.Service), setMark(r.Owner()|verdictDrop)
	ranges := r.Sources(t)
	if len(ranges) == 0 {
		r.nat.chain(name).rule(drop)
		return
	}
	source := r.bySource()
	tree{b: r.nat, name: name, by: &numbered{space: source}, miss: drop, write: func(c *chain, it item) {
		c.rule(source.match([]item{it}), "-j RETURN")
	}}.build(prefixItems(ranges))
}
