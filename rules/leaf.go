package rules

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"

	"sallyport/watcher/model"
)

// inlineDestinations is how many destinations are rules of the leaf itself. More get a tree of their own.
const inlineDestinations = 8

// A target is a service port as the rules see it: where new connections for it go.
type target struct {
	service  model.ObjectRef
	port     *model.ServicePort
	protocol string   // in lower case
	comment  string   // the match that names it, if any
	dnat     []string // the target for each of its IPv4 destinations
	hasTree  bool     // the tree of its destinations is built
}

func newTarget(svc *model.Service, sp *model.ServicePort) *target {
	t := &target{service: svc.Ref, port: sp, protocol: strings.ToLower(string(sp.Protocol)), comment: comment(svc.Ref, sp.Name)}
	for _, d := range sp.Destinations {
		if d.Addr.Addr().Is4() {
			t.dnat = append(t.dnat, "-j DNAT --to-destination "+d.Addr.String())
		}
	}
	return t
}

// rules counts what send appends.
func (t *target) rules() int {
	if n := len(t.dnat); n <= inlineDestinations {
		return 1 + n
	}
	return 2
}

// send appends the rules that send what matches to one of the target's destinations, or has it refused.
//
// The endpoint is chosen by a hash of source address and port, which leaves a slot in the mark. The nat table sees only
// the first packet of a connection; conntrack keeps the rest of it with the same endpoint. Slots are numbered through the
// chain, so that the mark alone leads to the endpoint: iptables-nft takes its time by the number of matches.
func (r *renderer) send(c *chain, match string, t *target) {
	n := len(t.dnat)
	if n > inlineDestinations {
		c.rule(match, t.comment, r.choose(0, n))
		c.rule(match, "-g", r.spread(t))
		return
	}
	c.rule(match, t.comment, r.choose(c.slots, n))
	for _, dnat := range t.dnat {
		c.rule("-p", t.protocol, r.slotMatch(c.slots), dnat) // DNAT to a port wants a protocol
		c.slots++
	}
}

// spread makes the tree from hash slot to destination, once for all addresses of the service port, and returns
// the name of its first chain. Slot i belongs to destination i: each gets an equal share.
func (r *renderer) spread(t *target) string {
	name := "SALLY-EP-" + digest(t)
	if t.hasTree {
		return name
	}
	t.hasTree = true
	items := make([]item, len(t.dnat))
	for slot, dnat := range t.dnat {
		items[slot] = item{key: slotKey(slot), bits: slotBits, rules: 1, write: func(c *chain) {
			c.rule("-p", t.protocol, r.slotMatch(slot), dnat)
		}}
	}
	tree{b: r.nat, name: name, by: bySlot(r.slotMark(0))}.build(items)
	return name
}

// choose sets the mark: the verdict and, with n destinations, one of n slots from the first one on.
func (r *renderer) choose(first, n int) string {
	switch mark := r.slotMark(first); n {
	case 0:
		return setMark(r.o.owner() | verdictReject)
	case 1:
		return setMark(mark)
	default:
		return "-j HMARK --hmark-tuple src,sport --hmark-mod " + strconv.Itoa(n) + " --hmark-offset " + hexMark(mark) +
			" --hmark-rnd " + hexMark(r.o.HashSeed)
	}
}

func (r *renderer) slotMark(slot int) uint32 { return r.o.owner() | verdictMasquerade | uint32(slot) }

func (r *renderer) slotMatch(slot int) string { return "-m mark --mark " + hexMark(r.slotMark(slot)) }

func setMark(mark uint32) string { return "-j MARK --set-xmark " + markValue(mark, wholeMask) }

// digest identifies a service port in 10 characters: chain names have 28 at most (XT_EXTENSION_MAXNAMELEN).
func digest(t *target) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", t.service, t.protocol, t.port.Port))
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
