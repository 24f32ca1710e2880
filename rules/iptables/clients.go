package iptables

import (
	"strconv"

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

func limitsChain(s *model.Service) string {
	return "SALLY-LIM-" + digest(digestLength, s.Ref.Namespace, s.Ref.Name)
}

const (
	// maxRate is the most that hashlimit counts in a second (XT_HASHLIMIT_SCALE_v2).
	maxRate = 1_000_000
	// maxClients is how many clients are told apart. Where there are more at a time, new ones are dropped.
	maxClients = "262144"
)

// limits writes the chain that marks what exceeds the limits, for all entries of a Service. A hashlimit of another rate needs
// another name: a table that stands keeps its rate.
func (r *renderer) limits(s *model.Service) {
	c, drop := r.nat.chain(limitsChain(s)), setMark(r.Owner()|verdictDrop)
	l := s.Limits
	if l.NewPerSecond != 0 {
		rate := strconv.Itoa(int(min(l.NewPerSecond, maxRate)))
		c.rule("-m hashlimit --hashlimit-above", rate+"/sec --hashlimit-burst", rate, "--hashlimit-mode srcip --hashlimit-srcmask", r.clientMask,
			"--hashlimit-htable-max", maxClients, "--hashlimit-name", Prefix+digest(digestLength, s.Ref.Namespace, s.Ref.Name, rate), drop)
		c.rule(isMarked(r.Owner()|verdictDrop, verdictMask), "-j RETURN") // who is dropped takes no place among connections
	}
	if l.PerClient != 0 {
		c.rule("-m connlimit --connlimit-above", strconv.Itoa(int(l.PerClient)), "--connlimit-mask", r.clientMask, "--connlimit-saddr", drop)
		c.rule(isMarked(r.Owner()|verdictDrop, verdictMask), "-j RETURN")
	}
	if l.Total != 0 {
		c.rule("-m connlimit --connlimit-above", strconv.Itoa(int(l.Total)), "--connlimit-mask 0 --connlimit-saddr", drop)
	}
}
