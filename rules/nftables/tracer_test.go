package nftables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sallyport/rules/plan"
)

// The edge's own addresses.
const (
	edgeIP   = "192.0.2.1"
	edgeIPv6 = "2001:db8:e::1"
)

// A tracer reads a table as nft does and tells what becomes of a packet.
type tracer struct {
	chains map[string][]string
	hooks  map[string]string // by hook and type, as in "prerouting nat"
	sets   map[string]*traceSet
	local  []netip.Addr // addresses of the edge, VIPs included
	beyond string       // limit that every connection exceeds: rate or connections
}

// A traceSet is a set or map.
type traceSet struct {
	spec     string
	elements map[string]string
}

// A tracePacket is a packet on its way.
type tracePacket struct {
	*tracer
	proto            string
	src, dst, origin netip.AddrPort // origin is where it was sent to
	state            string         // new, established, invalid, untracked
	midstream        bool           // new, and not the first packet of its connection
	mark, connmark   uint32
	slot, slots      uint32 // what jhash is to choose, and out of how many it chose
	translated       bool
	source           string // what the source address is replaced by
	evaluated        int
	until            string // the timeout of the client's memory
}

// readTable parses commands of nft and refuses what could not work: jumps to nowhere, chains and sets that nothing leads to.
func readTable(text string, local ...netip.Addr) (*tracer, error) {
	tr := &tracer{map[string][]string{}, map[string]string{}, map[string]*traceSet{}, local, ""}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != Name && f[1] != "table" {
			return nil, fmt.Errorf("line not understood: %q", line)
		}
		rest := strings.Join(f[4:], " ")
		switch verb := f[0] + " " + f[1]; verb {
		case "add table", "flush table":
		case "add set", "add map":
			name, spec, _ := strings.Cut(rest, " ")
			tr.sets[name] = &traceSet{spec, map[string]string{}}
		case "add chain":
			tr.chains[f[4]] = nil
			if len(f) > 5 {
				tr.hooks[f[9]+" "+f[7]] = f[4]
			}
		case "add rule":
			tr.chains[f[4]] = append(tr.chains[f[4]], strings.Join(f[5:], " "))
		case "add element":
			if err := tr.addElements(rest); err != nil {
				return nil, fmt.Errorf("%s: %w", line, err)
			}
		default:
			return nil, fmt.Errorf("line not understood: %q", line)
		}
	}
	return tr, tr.lint()
}

func (tr *tracer) addElements(command string) error {
	name, list, _ := strings.Cut(command, " ")
	set := tr.sets[name]
	if set == nil {
		return fmt.Errorf("there is no set %s", name)
	}
	for e := range strings.SplitSeq(strings.Trim(list, "{} "), ", ") {
		key, value, _ := strings.Cut(e, " : ")
		key, comment, _ := strings.Cut(key, ` comment "`)
		if strings.ContainsAny(key+value, `"{};`) || strings.ContainsAny(strings.TrimSuffix(comment, `"`), "\"\n") {
			return fmt.Errorf("element %q breaks out", e)
		}
		if _, twice := set.elements[key]; twice {
			return fmt.Errorf("element %s is there twice", key)
		}
		set.elements[key] = value
	}
	return nil
}

func (tr *tracer) lint() error {
	used := map[string]bool{}
	mention := func(text string) error {
		f := strings.Fields(text)
		for i, word := range f {
			if word == "jump" || word == "goto" {
				used[f[i+1]] = true
				if _, found := tr.chains[f[i+1]]; !found {
					return fmt.Errorf("%s: leads to missing chain", text)
				}
			}
			if name, isSet := strings.CutPrefix(word, "@"); isSet {
				used["@"+name] = true
				if tr.sets[name] == nil {
					return fmt.Errorf("%s: there is no such set", text)
				}
			}
		}
		return nil
	}
	for _, chain := range tr.hooks {
		used[chain] = true
	}
	for _, rules := range tr.chains {
		for _, rule := range rules {
			if err := mention(rule); err != nil {
				return err
			}
		}
	}
	for name, set := range tr.sets {
		for key, value := range set.elements {
			if err := mention(value); err != nil {
				return fmt.Errorf("map %s: %s: %w", name, key, err)
			}
		}
		if len(set.elements) > 0 && !used["@"+name] {
			return fmt.Errorf("nothing asks for set %s", name)
		}
	}
	for name := range tr.chains {
		if !used[name] {
			return fmt.Errorf("nothing leads to chain %s", name)
		}
	}
	return nil
}

// walk follows a packet through a chain: to a verdict, or "" where it comes back.
func (p *tracePacket) walk(chain string) (verdict string) {
	for _, rule := range p.chains[chain] {
		p.evaluated++
		verdict, done := p.rule(rule)
		if verdict == "return" {
			return ""
		}
		if verdict != "" || done {
			return verdict
		}
	}
	return ""
}

// hook walks from a hook of the kernel, which gives nat chains new connections only.
func (p *tracePacket) hook(name string) (verdict string) {
	if strings.HasSuffix(name, "nat") && p.state != "new" {
		return ""
	}
	if chain := p.hooks[name]; chain != "" {
		return p.walk(chain)
	}
	return ""
}

// route takes one packet all the way and names its fate.
func (p *tracePacket) route(fromEdge bool) string {
	first := "prerouting nat"
	if fromEdge {
		first = "output nat"
	}
	verdict := p.hook(first)
	local := p.isLocal(p.dst.Addr())
	if verdict == "" || verdict == "accept" {
		switch {
		case local:
			verdict = p.hook("input filter")
		case !fromEdge:
			verdict = p.hook("forward filter")
		}
	}
	if !local && (verdict == "" || verdict == "accept") {
		p.hook("postrouting nat")
	}
	return p.fate(verdict, fromEdge)
}

// fate words the verdict. It names what would be wrong with a forwarded connection: a packet that our own forward chain leaves
// to others, a mark that outlives postrouting, a connection without our connmark.
func (p *tracePacket) fate(verdict string, fromEdge bool) string {
	if verdict == "reject" || verdict == "drop" || !p.translated {
		return map[string]string{"": "not ours", "accept": "ACCEPT", "reject": "REJECT", "drop": "DROP"}[verdict]
	}
	fate := p.dst.String()
	for _, w := range []struct {
		word string
		is   bool
	}{
		{" " + p.source, p.source != ""},
		{" unaccepted", verdict != "accept" && !fromEdge},
		{" marked", p.mark != 0},
		{" unconnected", p.connmark>>24 == 0},
	} {
		if w.is {
			fate += w.word
		}
	}
	return fate
}

// trace tells what becomes of the packets of a flow, over all that the hash may choose: "10.1.0.2:80 10.1.0.3:80 masq",
// REJECT, DROP, ACCEPT, or "not ours"; and how many rules were evaluated in the worst case.
//
// A flow is "source -> protocol destination", such as "192.0.2.9 -> tcp 198.51.100.1:30001"; the source "edge" is the
// edge itself. A leading word ESTABLISHED, INVALID or UNTRACKED gives another state than NEW; MIDSTREAM is NEW to conntrack, but
// not the first packet of its connection.
func (tr *tracer) trace(flow string) (fate string, cost int) {
	p, fromEdge := tr.packet(flow)
	var fates []string
	suffix := ""
	for slot := uint32(0); slot == 0 || slot < p.slots; slot++ {
		q := p
		q.slot = slot
		known := maps.Clone(tr.sets[clients].elements)
		to, rest, _ := strings.Cut(q.route(fromEdge), " ")
		tr.sets[clients].elements = known
		fates, p.slots = append(fates, to), q.slots
		suffix = " " + rest
		cost = max(cost, q.evaluated)
	}
	slices.Sort(fates)
	return strings.TrimSpace(strings.Join(slices.Compact(fates), " ") + suffix), cost
}

// packet is the one that a flow speaks of.
func (tr *tracer) packet(flow string) (p tracePacket, fromEdge bool) {
	f := strings.Fields(flow)
	p = tracePacket{tracer: tr, state: "new"}
	if f[1] != "->" {
		p.state, f = strings.ToLower(f[0]), f[1:]
	}
	if p.midstream = p.state == "midstream"; p.midstream {
		p.state = "new"
	}
	p.proto, p.dst = f[2], flowEnd(f[3], "0")
	p.origin = p.dst
	if fromEdge = f[0] == "edge"; fromEdge {
		f[0] = edgeIP
		if p.dst.Addr().Is6() {
			f[0] = edgeIPv6
		}
	}
	p.src = flowEnd(f[0], "40000")
	return p, fromEdge
}

func flowEnd(s, port string) netip.AddrPort {
	if addr, err := netip.ParseAddr(s); err == nil {
		s = "[" + s + "]:" + port
		if addr.Is4() {
			s = addr.String() + ":" + port
		}
	}
	return netip.MustParseAddrPort(s)
}

func (tr *tracer) isLocal(a netip.Addr) bool {
	return a.IsLoopback() || a.String() == edgeIP || a.String() == edgeIPv6 || slices.Contains(tr.local, a)
}

// newTracer traces the table of a plan on an edge that has the plan's addresses.
func newTracer(t testing.TB, p *plan.Plan) *tracer {
	t.Helper()
	var b strings.Builder
	if _, err := Render(p).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	local := slices.Clone(p.Held)
	for _, a := range p.Addresses {
		if a.Own {
			local = append(local, a.Addr)
		}
	}
	tr, err := readTable(b.String(), local...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}
