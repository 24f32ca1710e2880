package nftables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// A place is where entries are: at addresses of Services, or at NodePorts. Each has maps of its own.
type place struct {
	name                                                        string // of its chains
	entries, destinations, serviceIDs, stickyPorts, stickySlots string
	withAddress                                                 bool
}

var (
	atAddress  = place{"vip", services, destinations, serviceIDs, stickyPorts, stickySlots, true}
	atNodePort = place{"nodeport", nodePorts, nodePortDestinations, nodePortServiceIDs, nodePortStickyPorts, nodePortStickySlots, false}
)

// key is the expression that finds the packet's entry in the maps of the place.
func (at place) key(w words) string {
	if at.withAddress {
		return w.ip + " daddr . meta l4proto . th dport"
	}
	return "meta l4proto . th dport"
}

// slotKey is the expression that finds the packet's entry in the place's destinations of a protocol, but for the slot.
func (at place) slotKey(w words, proto string) string {
	if at.withAddress {
		return w.ip + " daddr . " + proto + " dport"
	}
	return proto + " dport"
}

// slots is the map of the place from slot to destination.
func (at place) slots(proto string) string { return proto + "-" + at.destinations }

// A treatment is all that a new connection gets on the way to its endpoint. Entries that ask for the same share a chain: the
// kernel takes its time over many chains, but not over many elements.
type treatment struct {
	at         *place
	proto      string
	slots      int
	byClient   bool   // the source address alone chooses the endpoint
	sticky     string // for how long a client keeps its endpoint, or empty
	restricted bool
	limits     model.Limits
}

func (r *renderer) treatment(at *place, e plan.Entry) treatment {
	t := treatment{at: at, proto: protocol(e.Protocol), slots: plan.Slots(e.Destinations), restricted: e.Restricted}
	if t.slots == 0 {
		return t
	}
	t.slots = max(2, t.slots) // the kernel refuses to calculate modulo 1
	t.byClient = e.BySource()
	if timeout := e.Sticky(); timeout > 0 {
		t.sticky = seconds(timeout)
	}
	if l := e.Service.Limits; l != nil {
		t.limits = *l
	}
	return t
}

// protocol is as nft spells it.
func protocol(p model.Protocol) string {
	switch p {
	case model.UDP:
		return "udp"
	case model.SCTP:
		return "sctp"
	default:
		return "tcp"
	}
}

// name is the treatment's chain's, for example "vip-tcp-5-client-10800s-ranges".
func (t treatment) name() string {
	if t.slots == 0 && !t.restricted {
		return "refuse"
	}
	name := fmt.Appendf(nil, "%s-%s-%d", t.at.name, t.proto, t.slots)
	if t.byClient {
		name = append(name, "-client"...)
	}
	if t.sticky != "" {
		name = append(name, "-"+t.sticky...)
	}
	if t.restricted {
		name = append(name, "-ranges"...)
	}
	for _, l := range []struct {
		name  string
		limit uint32
	}{{"new", t.limits.NewPerSecond}, {"each", t.limits.PerClient}, {"all", t.limits.Total}} {
		if l.limit > 0 {
			name = fmt.Appendf(name, "-%s%d", l.name, l.limit)
		}
	}
	return string(name)
}

func (t treatment) needsServiceID() bool { return t.restricted || t.limits != model.Limits{} }

// lead is the verdict that leads to the chain of a treatment.
func (r *renderer) lead(t treatment) string {
	verdict, known := r.verdicts[t]
	if !known {
		name := t.name()
		if name != "refuse" {
			r.chain(name, "", r.rules(t)...)
		}
		verdict = "goto " + name
		r.verdicts[t] = verdict
	}
	return verdict
}

// An entryKey tells entries apart. Addr is the zero one for NodePorts.
type entryKey struct {
	at       *place
	addr     netip.Addr
	protocol model.Protocol
	port     uint16
}

// An entryText is an entry in the words of nft, and what it was made from.
type entryText struct {
	treatment
	service      model.ObjectRef
	port         string
	destinations []model.Destination

	entry Element
	slots []Element // but for those of sticky treatments
	round int       // when it was last asked for
}

// entry adds one to the maps of its place.
func (r *renderer) entry(at *place, addr netip.Addr, e plan.Entry) {
	t := r.treatment(at, e)
	text := r.text(entryKey{at, addr, e.Protocol, e.Port}, t, e)
	set := r.sets[at.entries]
	set.Elements = append(set.Elements, text.entry)
	if t.needsServiceID() {
		r.add(at.serviceIDs, text.entry.Key, r.serviceID(e))
	}
	if t.sticky != "" {
		r.stick(at, text.entry.Key, e.Target)
		return
	}
	set = r.sets[at.slots(t.proto)]
	set.Elements = append(set.Elements, text.slots...)
}

// text puts an entry into words, unless that was done for the plan before.
func (r *renderer) text(key entryKey, t treatment, e plan.Entry) *entryText {
	text := r.texts[key]
	if text == nil || text.treatment != t || text.service != e.Service.Ref || text.port != e.ServicePort.Name ||
		!slices.Equal(text.destinations, e.Destinations) {
		text = &entryText{treatment: t, service: e.Service.Ref, port: e.ServicePort.Name, destinations: e.Destinations}
		r.write(text, key)
		r.texts[key] = text
	}
	text.round = r.round
	text.entry.Value = r.lead(t)
	return text
}

func (r *renderer) write(text *entryText, key entryKey) {
	addr, port := "", strconv.Itoa(int(key.port))
	if key.at.withAddress {
		addr = key.addr.String() + " . "
	}
	text.entry = Element{Key: addr + text.proto + " . " + port, Comment: comment(text.service, text.port)}
	if text.sticky != "" {
		return
	}
	values := make([]string, len(text.destinations))
	for i, d := range text.destinations {
		values[i] = destination(d)
	}
	text.slots = make([]Element, text.treatment.slots)
	for slot, i := range table(text.destinations) {
		text.slots[slot] = Element{Key: addr + port + " . " + strconv.Itoa(slot), Value: values[i]}
	}
}

// table is the plan's of a service port, of two slots at least.
func table(destinations []model.Destination) []uint32 {
	slots := plan.Table(destinations)
	if len(slots) == 1 {
		slots = append(slots, slots[0])
	}
	return slots
}

func destination(d model.Destination) string {
	return d.Addr.Addr().String() + " . " + strconv.Itoa(int(d.Addr.Port()))
}

// serviceID is the mark of an entry's Service. It writes the source ranges, once for all entries that ask for them.
func (r *renderer) serviceID(e plan.Entry) string {
	id := hex(r.marks.service(r.Options, e.Service))
	if e.Restricted && !r.ranged[e.Service] {
		r.ranged[e.Service] = true
		for _, p := range r.Sources(e.Target) {
			r.add(sourceRanges, id+" . "+p.String(), "")
		}
	}
	return id
}

// rules are those of a treatment's chain. The nat hooks see only the first packet of a connection; conntrack keeps the rest of it
// with the same endpoint.
func (r *renderer) rules(t treatment) (rules []string) {
	key := t.at.key(r.words)
	if t.needsServiceID() {
		rules = append(rules, "meta mark set "+key+" map @"+t.at.serviceIDs)
	}
	if t.restricted {
		rules = append(rules, "meta mark . "+r.ip+" saddr != @"+sourceRanges+" drop")
	}
	if t.slots == 0 {
		return append(rules, "goto refuse")
	}
	rules = append(rules, r.limits(t.limits)...)
	rules = append(rules, "ct mark set ct mark and "+hex(^uint32(plan.OwnerMask))+" or "+hex(r.Owner()))
	hash := r.ip + " saddr . " + t.proto + " sport"
	if t.byClient {
		hash = r.ip + " saddr"
	}
	choose := fmt.Sprintf("jhash %s mod %d seed %s map @", hash, t.slots, hex(r.HashSeed))
	if t.sticky != "" {
		return append(rules, r.sticky(t, key, choose)...)
	}
	return append(rules, "dnat "+r.ip+" to "+t.at.slotKey(r.words, t.proto)+" . "+choose+t.at.slots(t.proto))
}

// maxRate is more than a client makes connections a second. The kernel refuses rates that it cannot calculate with.
const maxRate = 1_000_000

// limits drop what is over them.
func (r *renderer) limits(l model.Limits) (rules []string) {
	if n := min(l.NewPerSecond, maxRate); n > 0 {
		rules = append(rules, fmt.Sprintf("update @%s { meta mark . %s limit rate over %d/second burst %d packets } drop",
			newConnections, r.network, n, n))
	}
	if n := l.PerClient; n > 0 {
		rules = append(rules, fmt.Sprintf("add @%s { meta mark . %s ct count over %d } drop", clientConnections, r.network, n))
	}
	if n := l.Total; n > 0 {
		rules = append(rules, fmt.Sprintf("add @%s { meta mark ct count over %d } drop", connections, n))
	}
	return rules
}
