package iptables

import (
	"strconv"
	"strings"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// rulesOf counts what send appends.
func rulesOf(e plan.Entry) int {
	switch {
	case isSpecial(e):
		return 1
	case isPlain(e.Target):
		return 1 + plan.Slots(e.Destinations)
	default:
		return 2
	}
}

// isPlain says whether the slots are rules of the chain that chooses one, rather than a tree.
func isPlain(t *plan.Target) bool { return plan.Slots(t.Destinations) <= plan.PlainSlots }

// send appends the rules that send what matches to one of the target's destinations, or has it refused.
//
// The endpoint is chosen by a hash of the source, which leaves a slot in the mark. The nat table sees only the first packet
// of a connection; conntrack keeps the rest of it with the same endpoint. Slots are numbered through the chain, so that the
// mark alone leads to the endpoint: iptables-nft takes its time by the number of matches.
func (r *renderer) send(c *chain, match string, e plan.Entry, group uint8) {
	what := comment(e.Service.Ref, e.ServicePort.Name)
	switch {
	case isSpecial(e):
		c.rule(match, what, "-g", specialChain(e, group))
	case !isPlain(e.Target):
		c.rule(match, what, r.choose(e.Target, r.sent(e.Service, group), plan.Slots(e.Destinations)))
		c.rule(match, "-g", slotsChain(e.Target))
	default:
		table := plan.Table(e.Destinations)
		c.rule(match, what, r.choose(e.Target, r.sent(e.Service, group)+uint32(c.slots), len(table)))
		for _, d := range table {
			// DNAT to a port wants a protocol.
			c.rule("-p", protocol(e.Protocol), "-m mark --mark", hexMark(r.sent(e.Service, group)+uint32(c.slots)), dnat(e.Destinations[d]))
			c.slots++
		}
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
