package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// inlineDestinations is how many destinations are rules of the leaf itself. More get a tree of their own.
const inlineDestinations = 8

// rulesOf counts what send appends.
func rulesOf(e plan.Entry) int {
	if n := len(e.Destinations); n <= inlineDestinations {
		return 1 + n
	}
	return 2
}

// send appends the rules that send what matches to one of the target's destinations, or has it refused.
//
// The endpoint is chosen by a hash of source address and port, which leaves a slot in the mark. The nat table sees only
// the first packet of a connection; conntrack keeps the rest of it with the same endpoint. Slots are numbered through the
// chain, so that the mark alone leads to the endpoint: iptables-nft takes its time by the number of matches.
func (r *renderer) send(c *chain, match string, e plan.Entry) {
	n := len(e.Destinations)
	if n > inlineDestinations {
		c.rule(match, comment(e.Service.Ref, e.ServicePort.Name), r.choose(0, n))
		c.rule(match, "-g", r.spread(e))
		return
	}
	c.rule(match, comment(e.Service.Ref, e.ServicePort.Name), r.choose(c.slots, n))
	for _, d := range e.Destinations {
		c.rule("-p", protocol(e), r.slotMatch(c.slots), dnat(d)) // DNAT to a port wants a protocol
		c.slots++
	}
}

func dnat(d model.Destination) string { return "-j DNAT --to-destination " + d.Addr.String() }

// spread makes the tree from hash slot to destination, once for all addresses of the service port, and returns
// the name of its first chain. Slot i belongs to destination i: each gets an equal share.
func (r *renderer) spread(e plan.Entry) string {
	name := "SALLY-EP-" + digest(e)
	if r.spreads[e.Target] {
		return name
	}
	r.spreads[e.Target] = true
	items := make([]item, len(e.Destinations))
	for slot, d := range e.Destinations {
		items[slot] = item{key: slotKey(slot), bits: slotBits, rules: 1, write: func(c *chain) {
			c.rule("-p", protocol(e), r.slotMatch(slot), dnat(d))
		}}
	}
	tree{b: r.nat, name: name, by: bySlot(r.slotMark(0))}.build(items)
	return name
}

// choose sets the mark: the verdict and, with n destinations, one of n slots from the first one on.
func (r *renderer) choose(first, n int) string {
	switch mark := r.slotMark(first); n {
	case 0:
		return setMark(r.Owner() | verdictReject)
	case 1:
		return setMark(mark)
	default:
		return "-j HMARK --hmark-tuple src,sport --hmark-mod " + strconv.Itoa(n) + " --hmark-offset " + hexMark(mark) +
			" --hmark-rnd " + hexMark(r.HashSeed)
	}
}

func (r *renderer) slotMark(slot int) uint32 { return r.Owner() | verdictMasquerade | uint32(slot) }

func (r *renderer) slotMatch(slot int) string { return "-m mark --mark " + hexMark(r.slotMark(slot)) }

func setMark(mark uint32) string { return "-j MARK --set-xmark " + markValue(mark, wholeMask) }

// digest identifies a service port in 10 characters: chain names have 28 at most (XT_EXTENSION_MAXNAMELEN).
func digest(e plan.Entry) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", e.Service.Ref, protocol(e), e.ServicePort.Port))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:10])
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
