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
	if routed := r.routed(); len(routed) > 0 {
		forward.rule(unknown + podsChain)
		destination := r.byDestination()
		tree{b: r.filter, name: podsChain, by: destination, write: func(c *chain, it item) {
			c.rule(destination.match([]item{it}), "-j DROP")
		}}.build(routed)
	}
}

// routed are the networks of the family that are closed to others.
func (r *renderer) routed() []item {
	all := slices.Clone(r.Routed)
	all = slices.DeleteFunc(all, func(p netip.Prefix) bool { return !r.Family.Has(p.Addr()) })
	return prefixItems(plan.Disjoint(all))
}
