package iptables

import (
	"strconv"
	"strings"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// inlineRanges is how many source ranges are rules of the leaf itself. More get a tree of their own.
const inlineRanges = 8

// rulesOf counts what send appends.
func (r *renderer) rulesOf(e plan.Entry) int {
	if r.isSpecial(e) {
		return 1
	}
	choices, to := 1, 1
	if e.Restricted {
		choices += r.countSources(e.Target) // and one to drop who is outside
	}
	if isPlain(e.Target) {
		to = plan.Slots(e.Destinations)
	}
	return choices + to
}

// isPlain says whether the slots are rules of the chain that chooses one, rather than a tree.
func isPlain(t *plan.Target) bool { return plan.Slots(t.Destinations) <= plan.PlainSlots }

// send appends the rules that send what matches to one of the target's destinations, or has it refused or dropped.
//
// The endpoint is chosen by a hash of the source, which leaves a slot in the mark. The nat table sees only the first packet
// of a connection; conntrack keeps the rest of it with the same endpoint. Slots are numbered through the chain, so that the
// mark alone leads to the endpoint: iptables-nft takes its time by the number of matches.
func (r *renderer) send(c *chain, match string, e plan.Entry, group uint8) {
	what := comment(e.Service.Ref, e.ServicePort.Name)
	if r.isSpecial(e) {
		c.rule(match, what, "-g", specialChain(e, group))
		return
	}
	first := r.sent(e.Service, group)
	if isPlain(e.Target) {
		first += uint32(c.slots)
	}
	choose := r.choose(e.Target, first, plan.Slots(e.Destinations))
	if !e.Restricted {
		c.rule(match, what, choose)
		r.toSlots(c, match, e, first)
		return
	}
	for _, from := range r.Sources(e.Target) {
		c.rule(match, "-s", from.String(), what, choose)
	}
	if !r.isClosed(e) {
		r.toSlots(c, match+" "+isMarked(r.Owner()|verdictSent, sentMask), e, first)
	}
	c.rule(match, what, "-m mark ! --mark", markValue(r.Owner()|verdictReject, verdictMask), setMark(r.Owner()|verdictDrop))
}

// toSlots appends what leads from the mark to the endpoint, the mark of the first slot being given.
func (r *renderer) toSlots(c *chain, match string, e plan.Entry, first uint32) {
	if !isPlain(e.Target) {
		c.rule(match, "-g", slotsChain(e.Target))
		return
	}
	for slot, d := range plan.Table(e.Destinations) {
		// DNAT to a port wants a protocol.
		c.rule("-p", protocol(e.Protocol), "-m mark --mark", hexMark(first+uint32(slot)), dnat(e.Destinations[d]))
		c.slots++
	}
}

// sent is the mark of what is sent to slot 0.
func (r *renderer) sent(s *model.Service, group uint8) uint32 {
	mark := r.Owner() | verdictSent | uint32(group)<<groupShift
	if isLimited(s) {
		mark |= verdictLimited
	}
	return mark
}

func dnat(d model.Destination) string { return "-j DNAT --to-destination " + d.Addr.String() }

// choose sets the mark: with n slots one of them, from the first mark on; without any, that to refuse.
func (r *renderer) choose(t *plan.Target, first uint32, n int) string {
	switch n {
	case 0:
		return setMark(r.Owner() | verdictReject)
	case 1:
		return setMark(first)
	}
	tuple := "src,sport"
	if t.BySource() {
		tuple = "src"
	}
	return "-j HMARK --hmark-tuple " + tuple + " --hmark-mod " + strconv.Itoa(n) + " --hmark-offset " + hexMark(first) +
		" --hmark-rnd " + hexMark(r.HashSeed)
}

// comment names the service port to who reads the rules. Names come from the cluster: one that the API server would
// not have taken (RFC 1123 labels, 255 bytes at most) is left out, so that no name ends a rule or reads as an option.
func comment(svc model.ObjectRef, port string) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-./:"
	name := svc.Namespace + "/" + svc.Name
	if port != "" {
		name += ":" + port
	}
	if len(name) > 255 || name[0] == '-' || strings.Trim(name, letters) != "" {
		return ""
	}
	return "-m comment --comment " + name
}
