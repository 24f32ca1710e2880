package iptables

import (
	"strconv"
	"time"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// isSpecial says whether an entry has a chain of its own, for more than the choice of an endpoint.
func (r *renderer) isSpecial(e plan.Entry) bool {
	return e.Restricted && r.countSources(e.Target) > inlineRanges || len(e.Destinations) > 0 && e.Sticky() > 0 && !r.isClosed(e)
}

// identity tells a service port from all others.
func identity(t *plan.Target) (parts [4]string) {
	return [4]string{scope(t.Service.Ref), t.Service.Ref.Name, string(t.ServicePort.Protocol), strconv.Itoa(int(t.ServicePort.Port))}
}

// scope is the namespace of a Service, with its cluster where that has a name: two clusters may have the same Services.
func scope(r model.ObjectRef) string {
	if r.Cluster == "" {
		return r.Namespace
	}
	return r.Cluster + ":" + r.Namespace // which no namespace contains (RFC 1123)
}

func specialChain(e plan.Entry, group uint8) string {
	id := identity(e.Target)
	return "SALLY-SP-" + digest(digestLength, append(id[:], strconv.Itoa(int(group)), strconv.FormatBool(e.Restricted))...)
}

func slotsChain(t *plan.Target) string {
	id := identity(t)
	return "SALLY-EP-" + digest(digestLength, id[:]...)
}

func stickyChain(t *plan.Target, d model.Destination) string {
	id := identity(t)
	return "SALLY-TO-" + digest(digestLength, append(id[:], d.Addr.String())...)
}

// stickySet is of 125 bits: the sets of others are out of reach, and there is no second one to try.
func (r *renderer) stickySet(t *plan.Target, d model.Destination) string {
	id := identity(t)
	return Prefix + digest(25, append(id[:], d.Addr.String())...)
}

// prepare writes the chains that the entries of an item have to themselves, and counts the rules that send them there.
func (r *renderer) prepare(it item) (rules int) {
	for i, e := range it.entries {
		rules += r.rulesOf(e)
		special, plain := r.isSpecial(e), isPlain(e.Target)
		if !special && (plain || r.isClosed(e)) {
			continue
		}
		one := item{entries: it.entries[i : i+1], group: it.group}
		if special {
			r.prepareSpecial(e, one)
		}
		if !plain {
			r.nat.once(slotsChain(e.Target), one, func() { r.slots(e.Target) })
		}
	}
	return rules
}

func (r *renderer) prepareSpecial(e plan.Entry, one item) {
	if e.Restricted {
		r.nat.once(sourcesChain(e.Service), one, func() { r.sources(e.Target) })
	}
	if timeout := e.Sticky(); timeout > 0 {
		for _, d := range e.Destinations {
			r.sets = append(r.sets, Set{r.stickySet(e.Target, d), r.Family, timeout})
			r.nat.once(stickyChain(e.Target, d), one, func() { r.stick(e.Target, d, timeout) })
		}
	}
	name := specialChain(e, one.group)
	r.nat.once(name, one, func() { r.special(r.nat.chain(name), e, one.group) })
}

// special writes the chain of an entry: who may not connect is marked and leaves; the others are sent on.
func (r *renderer) special(c *chain, e plan.Entry, group uint8) {
	if e.Restricted {
		c.rule("-j", sourcesChain(e.Service))
		c.rule(isMarked(r.Owner()|verdictDrop, verdictMask), "-j RETURN")
	}
	c.rule(r.choose(e.Target, r.sent(e.Service, group), plan.Slots(e.Destinations)))
	if e.Sticky() > 0 {
		for _, d := range e.Destinations {
			c.rule("-m set --match-set", r.stickySet(e.Target, d), "src -g", stickyChain(e.Target, d))
		}
	}
	if !isPlain(e.Target) {
		c.rule("-g", slotsChain(e.Target))
		return
	}
	for slot, d := range plan.Table(e.Destinations) {
		r.slot(c, e.Target, slot, e.Destinations[d])
	}
}

// slots writes the tree from hash slot to destination, for all addresses of the service port.
func (r *renderer) slots(t *plan.Target) {
	table := plan.Table(t.Destinations)
	items := make([]item, len(table))
	for slot, d := range table {
		items[slot] = item{key: portKey(uint16(slot)), bits: slotBits, rules: 1, index: int(d)}
	}
	tree{b: r.nat, name: slotsChain(t), by: bySlot{}, write: func(c *chain, it item) {
		r.slot(c, t, int(it.key.port()), t.Destinations[it.index])
	}}.build(items)
}

// slot writes the rule of one hash slot. It looks at nothing else of the mark: the group is that of the address.
func (r *renderer) slot(c *chain, t *plan.Target, slot int, d model.Destination) {
	match := isMarked(uint32(slot), slotMask)
	if t.Sticky() > 0 {
		c.rule(match, "-g", stickyChain(t, d))
		return
	}
	c.rule("-p", protocol(t.ServicePort.Protocol), match, dnat(d))
}

// stick writes the chain that sends a client to a destination, and remembers it for that long.
func (r *renderer) stick(t *plan.Target, d model.Destination, timeout time.Duration) {
	c := r.nat.chain(stickyChain(t, d))
	c.rule("-j SET --add-set", r.stickySet(t, d), "src --exist --timeout", strconv.Itoa(seconds(timeout)))
	c.rule("-p", protocol(t.ServicePort.Protocol), dnat(d))
}
