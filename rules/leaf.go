package rules

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"

	"sallyport/watcher/model"
)

// inlineDestinations is how many destinations are rules of the leaf itself. More get a tree of their own.
const inlineDestinations = 8

// A target is a service port as the rules see it: where new connections for it go.
type target struct {
	service  model.ObjectRef
	port     *model.ServicePort
	to       []netip.AddrPort // IPv4 destinations
	protocol string           // in lower case
	hasTree  bool             // the tree of its destinations is built
}

func newTarget(svc *model.Service, sp *model.ServicePort) *target {
	t := &target{service: svc.Ref, port: sp, protocol: strings.ToLower(string(sp.Protocol))}
	for _, d := range sp.Destinations {
		if d.Addr.Addr().Is4() {
			t.to = append(t.to, d.Addr)
		}
	}
	return t
}

// rules counts what send appends.
func (t *target) rules() int {
	if n := len(t.to); n <= inlineDestinations {
		return 1 + n
	}
	return 2
}

// send appends the rules that send what matches to one of the target's destinations, or has it refused.
//
// The endpoint is chosen by a hash of source address and port. The nat table sees only the first packet of a
// connection; conntrack keeps the rest of it with the same endpoint.
func (r *renderer) send(c *chain, match string, t *target) {
	n := len(t.to)
	c.rule(match, comment(t), r.choose(n))
	switch {
	case n == 0:
	case n <= inlineDestinations:
		for slot, to := range t.to[:n-1] {
			c.rule(match, r.slotMatch(slot), dnat(to))
		}
		c.rule(match, dnat(t.to[n-1])) // the slot that is left
	default:
		c.rule(match, "-g", r.spread(t))
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
	items := make([]item, len(t.to))
	for slot, to := range t.to {
		items[slot] = item{key: slotKey(slot), bits: slotBits, rules: 1, write: func(c *chain) {
			c.rule("-p", t.protocol, r.slotMatch(slot), dnat(to)) // DNAT to a port wants a protocol
		}}
	}
	tree{b: r.nat, name: name, by: bySlot(r.o.owner() | verdictMasquerade)}.build(items)
	return name
}

// choose sets the mark: the verdict and, out of several destinations, a slot below n.
func (r *renderer) choose(n int) string {
	switch masquerade := r.o.owner() | verdictMasquerade; n {
	case 0:
		return setMark(r.o.owner() | verdictReject)
	case 1:
		return setMark(masquerade)
	default:
		return fmt.Sprintf("-j HMARK --hmark-tuple src,sport --hmark-mod %d --hmark-offset %#x --hmark-rnd %#x",
			n, masquerade, r.o.HashSeed)
	}
}

func (r *renderer) slotMatch(slot int) string {
	return fmt.Sprintf("-m mark --mark %#x", r.o.owner()|verdictMasquerade|uint32(slot))
}

func setMark(mark uint32) string { return "-j MARK --set-xmark " + markValue(mark, wholeMask) }

func dnat(to netip.AddrPort) string { return "-j DNAT --to-destination " + to.String() }

// digest identifies a service port in 10 characters: chain names have 28 at most (XT_EXTENSION_MAXNAMELEN).
func digest(t *target) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d", t.service, t.protocol, t.port.Port))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:10])
}

// comment names the service port to who reads the rules. Names come from the cluster: one that the API server would
// not have taken (RFC 1123 labels; the kernel's limit is 255 bytes) is left out, so that no name ends a rule early.
func comment(t *target) string {
	name := t.service.Namespace + "/" + t.service.Name
	if t.port.Name != "" {
		name += ":" + t.port.Name
	}
	if len(name) > 255 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-./:") != "" {
		return ""
	}
	return "-m comment --comment " + name
}
