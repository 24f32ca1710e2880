// Package trace reads a table of nftables as nft does and tells what becomes of packets. It is for tests, and knows what package
// nftables writes; what it does not know, it refuses. It answers in the words of the tracer of iptables rules.
package trace

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// The edge's own addresses.
const (
	EdgeIPv4 = "192.0.2.1"
	EdgeIPv6 = "2001:db8:e::1"
)

// table is the name of the tables that are read.
const table = "sallyport"

// A Tracer holds one table.
type Tracer struct {
	// Beyond names the limit that every connection exceeds, "rate" or "connections", or none.
	Beyond string

	chains map[string][]string
	hooks  map[string]string // by hook and type, as in "prerouting nat"
	sets   map[string]*set
	local  []netip.Addr // addresses of the edge, VIPs included
}

// A set is a set or map.
type set struct {
	spec     string
	elements map[string]string
}

// A packet is on its way.
type packet struct {
	*Tracer
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

// Read parses commands of nft that make a table, on an edge that has the addresses local beside its own. It refuses what could not
// work: jumps to nowhere, chains and sets that nothing leads to.
func Read(text string, local ...netip.Addr) (*Tracer, error) {
	tr := &Tracer{chains: map[string][]string{}, hooks: map[string]string{}, sets: map[string]*set{}, local: local}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != table && f[1] != "table" {
			return nil, fmt.Errorf("line not understood: %q", line)
		}
		rest := strings.Join(f[4:], " ")
		switch verb := f[0] + " " + f[1]; verb {
		case "add table", "flush table":
		case "add set", "add map":
			name, spec, _ := strings.Cut(rest, " ")
			tr.sets[name] = &set{spec, map[string]string{}}
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

func (tr *Tracer) addElements(command string) error {
	name, list, _ := strings.Cut(command, " ")
	s := tr.sets[name]
	if s == nil {
		return fmt.Errorf("there is no set %s", name)
	}
	for e := range strings.SplitSeq(strings.Trim(list, "{} "), ", ") {
		key, value, _ := strings.Cut(e, " : ")
		key, comment, _ := strings.Cut(key, ` comment "`)
		if strings.ContainsAny(key+value, `"{};`) || strings.ContainsAny(strings.TrimSuffix(comment, `"`), "\"\n") {
			return fmt.Errorf("element %q breaks out", e)
		}
		if _, twice := s.elements[key]; twice {
			return fmt.Errorf("element %s is there twice", key)
		}
		s.elements[key] = value
	}
	return nil
}

func (tr *Tracer) lint() error {
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
func (p *packet) walk(chain string) (verdict string) {
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
func (p *packet) hook(name string) (verdict string) {
	if strings.HasSuffix(name, "nat") && p.state != "new" {
		return ""
	}
	if chain := p.hooks[name]; chain != "" {
		return p.walk(chain)
	}
	return ""
}

// route takes one packet all the way and names its fate.
func (p *packet) route(fromEdge bool) string {
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
func (p *packet) fate(verdict string, fromEdge bool) string {
	if verdict == "reject" || verdict == "drop" || !p.translated {
		return map[string]string{"": "not ours", "accept": "ACCEPT", "reject": "REJECT", "drop": "DROP"}[verdict]
	}
	fate := []string{p.dst.String()}
	for _, w := range []struct {
		word string
		is   bool
	}{
		{p.source, p.source != ""},
		{"unaccepted", verdict != "accept" && !fromEdge},
		{"marked", p.mark != 0},
		{"unconnected", p.connmark>>24 == 0},
	} {
		if w.is {
			fate = append(fate, w.word)
		}
	}
	return strings.Join(fate, " ")
}

// Trace tells what becomes of the packets of a flow, over all that the hash may choose: "10.1.0.2:80 10.1.0.3:80 masq",
// REJECT, DROP, ACCEPT, or "not ours"; and how many rules were evaluated in the worst case.
//
// A flow is "source -> protocol destination", such as "192.0.2.9 -> tcp 198.51.100.1:30001"; the source "edge" is the
// edge itself. A leading word ESTABLISHED, INVALID or UNTRACKED gives another state than NEW; MIDSTREAM is NEW to conntrack, but
// not the first packet of its connection.
func (tr *Tracer) Trace(flow string) (fate string, cost int) {
	p, fromEdge := tr.packet(flow)
	var fates []string
	suffix := ""
	for slot := uint32(0); slot == 0 || slot < p.slots; slot++ {
		q := p
		q.slot = slot
		known := tr.remembered()
		to, rest, _ := strings.Cut(q.route(fromEdge), " ")
		tr.forget(known)
		fates, p.slots = append(fates, to), q.slots
		suffix = " " + rest
		cost = max(cost, q.evaluated)
	}
	slices.Sort(fates)
	return strings.TrimSpace(strings.Join(slices.Compact(fates), " ") + suffix), cost
}

// packet is the one that a flow speaks of.
func (tr *Tracer) packet(flow string) (p packet, fromEdge bool) {
	f := strings.Fields(flow)
	p = packet{Tracer: tr, state: "new"}
	if f[1] != "->" {
		p.state, f = strings.ToLower(f[0]), f[1:]
	}
	if p.midstream = p.state == "midstream"; p.midstream {
		p.state = "new"
	}
	p.proto, p.dst = f[2], flowEnd(f[3], "0")
	p.origin = p.dst
	if fromEdge = f[0] == "edge"; fromEdge {
		f[0] = EdgeIPv4
		if p.dst.Addr().Is6() {
			f[0] = EdgeIPv6
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

func (tr *Tracer) isLocal(a netip.Addr) bool {
	return a.IsLoopback() || a.String() == EdgeIPv4 || a.String() == EdgeIPv6 || slices.Contains(tr.local, a)
}

// Connect sends the first packet of a flow whose hash chooses the slot, and has the table remember it. It gives its fate as Trace does,
// and for how long its client is remembered.
func (tr *Tracer) Connect(flow string, slot uint32) (fate, timeout string) {
	p, fromEdge := tr.packet(flow)
	p.slot = slot
	return p.route(fromEdge), p.until
}

// Elements are those of a set or map, by key.
func (tr *Tracer) Elements(name string) map[string]string { return tr.sets[name].elements }

// Chains counts them.
func (tr *Tracer) Chains() int { return len(tr.chains) }

// remembered copies what packets fill.
func (tr *Tracer) remembered() map[string]map[string]string {
	known := map[string]map[string]string{}
	for name, s := range tr.sets {
		if strings.Contains(s.spec, "dynamic") {
			known[name] = maps.Clone(s.elements)
		}
	}
	return known
}

func (tr *Tracer) forget(known map[string]map[string]string) {
	for name, elements := range known {
		tr.sets[name].elements = elements
	}
}
