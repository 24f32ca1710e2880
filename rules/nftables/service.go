package nftables

import (
	"fmt"
	"strconv"
	"strings"

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

func (r *renderer) treatment(at *place, slots int, e plan.Entry) treatment {
	t := treatment{at: at, proto: strings.ToLower(string(e.Protocol)), slots: slots, restricted: e.Restricted}
	if slots == 0 {
		return t
	}
	t.byClient = e.BySource()
	if _, ok := r.stickyPort(e.Target); ok {
		t.sticky = seconds(e.Sticky())
	}
	if l := e.Service.Limits; l != nil {
		t.limits = *l
	}
	return t
}

// chain names the treatment's, for example "vip-tcp-5-client-10800s-ranges".
func (t treatment) chain() string {
	if t.slots == 0 && !t.restricted {
		return "refuse"
	}
	name := t.at.name + "-" + t.proto + "-" + strconv.Itoa(t.slots)
	if t.byClient {
		name += "-client"
	}
	if t.sticky != "" {
		name += "-" + t.sticky
	}
	if t.restricted {
		name += "-ranges"
	}
	for _, l := range []struct {
		name  string
		limit uint32
	}{{"new", t.limits.NewPerSecond}, {"each", t.limits.PerClient}, {"all", t.limits.Total}} {
		if l.limit > 0 {
			name += "-" + l.name + strconv.FormatUint(uint64(l.limit), 10)
		}
	}
	return name
}

func (t treatment) needsServiceID() bool { return t.restricted || t.limits != model.Limits{} }

// entry adds one to the maps of its place. The key of its elements starts with addr.
func (r *renderer) entry(at *place, addr string, e plan.Entry) {
	slots := r.slots(e.Target)
	t := r.treatment(at, len(slots), e)
	port := strconv.Itoa(int(e.Port))
	key := addr + t.proto + " . " + port
	name := t.chain()
	if _, known := r.chains[name]; !known {
		r.chain(name, "", r.rules(t)...)
	}
	r.add(at.entries, key, "goto "+name)
	last := len(r.sets[at.entries].Elements) - 1
	r.sets[at.entries].Elements[last].Comment = comment(e.Service.Ref, e.ServicePort.Name)
	if t.needsServiceID() {
		r.add(at.serviceIDs, key, r.serviceID(e))
	}
	if t.sticky != "" {
		r.stick(at, key, slots, e.Target)
		return
	}
	for slot, i := range slots {
		r.add(t.proto+"-"+at.destinations, addr+port+" . "+strconv.Itoa(slot), destination(e.Destinations[i]))
	}
}

func destination(d model.Destination) string {
	return d.Addr.Addr().String() + " . " + strconv.Itoa(int(d.Addr.Port()))
}

// slots is the table of a service port. The kernel refuses to calculate modulo 1, so that one slot is two.
func (r *renderer) slots(t *plan.Target) []uint32 {
	if slots, known := r.tables[t]; known {
		return slots
	}
	slots := plan.Table(t.Destinations)
	if len(slots) == 1 {
		slots = append(slots, slots[0])
	}
	r.tables[t] = slots
	return slots
}

// serviceID is the mark of an entry's Service, whose source ranges it writes.
func (r *renderer) serviceID(e plan.Entry) string {
	mark, isNew := r.marks.service(r.Options, e.Service)
	if isNew && e.Service.SourceRanges != nil {
		for _, p := range r.Sources(e.Target) {
			r.add(sourceRanges, hex(mark)+" . "+p.String(), "")
		}
	}
	return hex(mark)
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
	return append(rules, "dnat "+r.ip+" to "+t.at.slotKey(r.words, t.proto)+" . "+choose+t.proto+"-"+t.at.destinations)
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
