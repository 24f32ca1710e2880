package iptables

import (
	"net/netip"
	"slices"

	"sallyport/rules/plan"
)

// AloneChain drops what others would forward. It also remembers: forwarding was off before it came.
const AloneChain = Prefix + "ALONE"

// podsChain is the tree that drops what others would send along the routes to pods.
const podsChain = Prefix + "PODS"

// refuseOthers ends SALLY-FORWARD, after what is Sallyport's has left it. Connections that conntrack knows go on: they
// were let through before, or lead from a pod to the outside.
func (r *renderer) refuseOthers(forward *chain) {
	const unknown = "-m conntrack ! --ctstate RELATED,ESTABLISHED -g "
	if !r.Router {
		forward.rule(unknown + AloneChain)
		r.filter.chain(AloneChain).rule("-j DROP")
		return
	}
	if len(r.Routed) == 0 {
		return
	}
	forward.rule(unknown + podsChain)
	tree{b: r.filter, name: podsChain, by: byDestination}.build(prefixItems(plan.Disjoint(slices.Clone(r.Routed)), func(c *chain, p netip.Prefix) {
		c.rule("-d", p.String(), "-j DROP")
	}))
}
