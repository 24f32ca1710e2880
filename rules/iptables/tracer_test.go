package iptables

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// The edge's own addresses.
const (
	edgeIP   = "192.0.2.1"
	edgeIPv6 = "2001:db8:e::1"
)

// A tracer reads rules as iptables-restore does and tells what becomes of a packet.
type tracer struct {
	tables map[string]map[string][]traceRule
	local  []netip.Addr // addresses of the edge, VIPs included
	member string       // set that has the source of every packet
	beyond string       // limit that every connection exceeds
}

// A traceRule is one rule: all matches must hold, then the target applies.
type traceRule struct {
	text    string
	matches []func(*tracePacket) bool
	target  string   // of -j or -g
	jump    bool     // -j rather than -g
	args    []string // of the target
}

// A tracePacket is a packet on its way.
type tracePacket struct {
	proto          string
	src, dst       netip.AddrPort
	original       netip.AddrPort // dst before DNAT
	state          string         // NEW, ESTABLISHED, INVALID
	midstream      bool           // NEW, and not the first packet of its connection
	member         string         // set that has the source
	beyond         string         // limit that the connection exceeds: rate or connections
	mark, connmark uint32
	slot, slots    uint32 // what HMARK is to choose, and out of how many it chose
	local          []netip.Addr
	evaluated      int
	to             netip.AddrPort
	masq           bool
	snat           string
}

// readRules parses rules and refuses what could not work: jumps to nowhere, chains that nothing leads to.
func readRules(text string, local ...netip.Addr) (*tracer, error) {
	tr, err := parseRules(text, local...)
	if err != nil {
		return nil, err
	}
	return tr, tr.lint()
}

func parseRules(text string, local ...netip.Addr) (*tracer, error) {
	tr := &tracer{tables: map[string]map[string][]traceRule{}, local: local}
	var chains map[string][]traceRule
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] == "#" || f[0] == "COMMIT":
		case f[0][0] == '*':
			chains = map[string][]traceRule{}
			tr.tables[f[0][1:]] = chains
		case f[0][0] == ':':
			chains[f[0][1:]] = nil
		case f[0] == "-A":
			r, err := parseRule(f[2:])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
			}
			r.text = strings.TrimSpace(line)
			if _, ok := chains[f[1]]; !ok {
				return nil, fmt.Errorf("%s: chain is not declared", r.text)
			}
			chains[f[1]] = append(chains[f[1]], r)
		default:
			return nil, fmt.Errorf("line not understood: %q", line)
		}
	}
	return tr, nil
}

func (tr *tracer) lint() error {
	for table, chains := range tr.tables {
		used := map[string]bool{}
		for _, h := range Hooks {
			if h.Table == table {
				used[h.To] = true
				if _, ok := chains[h.To]; !ok {
					return fmt.Errorf("%s: hook to missing chain %s", table, h.To)
				}
			}
		}
		for _, rules := range chains {
			for _, r := range rules {
				if !strings.HasPrefix(r.target, Prefix) {
					continue
				}
				used[r.target] = true
				if _, ok := chains[r.target]; !ok {
					return fmt.Errorf("%s: leads to missing chain", r.text)
				}
			}
		}
		for name := range chains {
			if !used[name] {
				return fmt.Errorf("%s: nothing leads to chain %s", table, name)
			}
			if len(name) > 28 {
				return fmt.Errorf("%s: chain name %s is longer than 28", table, name)
			}
		}
	}
	return nil
}

// longest returns the length of the longest chain.
func (tr *tracer) longest() (n int, name string) {
	for _, chains := range tr.tables {
		for c, rules := range chains {
			if len(rules) > n {
				n, name = len(rules), c
			}
		}
	}
	return n, name
}

// checkTarget parses the target's arguments once, so that errors show before any packet does.
func checkTarget(r traceRule) (err error) {
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("target %s with arguments %q is unknown to the tracer", r.target, r.args)
		}
	}()
	if !strings.HasPrefix(r.target, Prefix) {
		r.apply(&tracePacket{})
	}
	return nil
}

// apply does what a target that is no chain does, and says whether the walk of the table ends with a verdict. It
// panics on what it does not know.
func (r traceRule) apply(p *tracePacket) (verdict string) {
	switch r.target {
	case "ACCEPT", "DROP", "REJECT", "RETURN":
		return r.target
	case "DNAT":
		p.to = netip.MustParseAddrPort(argument(r.args, "--to-destination"))
		return "ACCEPT"
	case "MASQUERADE":
		p.masq = true
		return "ACCEPT"
	case "SNAT":
		p.snat = argument(r.args, "--to-source")
		if first, last, _ := strings.Cut(p.snat, "-"); first == last {
			p.snat = first
		}
		return "ACCEPT"
	case "SET":
		number(argument(r.args, "--timeout"))
	case "MARK":
		p.mark = setXmark(p.mark, argument(r.args, "--set-xmark"))
	case "CONNMARK":
		p.connmark = setXmark(p.connmark, argument(r.args, "--set-xmark"))
	case "HMARK":
		if got := argument(r.args, "--hmark-tuple"); got != "src,sport" && got != "src" {
			panic("HMARK over " + got)
		}
		p.slots = number(argument(r.args, "--hmark-mod"))
		p.mark = number(argument(r.args, "--hmark-offset")) + p.slot%p.slots
	default:
		panic("unknown target " + r.target)
	}
	return ""
}

func (p *tracePacket) isLocal(a netip.Addr) bool {
	return a.IsLoopback() || slices.Contains(p.local, a)
}

// walk follows a packet through a chain: to a verdict, or "" where it comes back.
func (tr *tracer) walk(table, chain string, p *tracePacket) (verdict string) {
	for _, r := range tr.tables[table][chain] {
		p.evaluated++
		if slices.ContainsFunc(r.matches, func(m func(*tracePacket) bool) bool { return !m(p) }) {
			continue
		}
		if strings.HasPrefix(r.target, Prefix) {
			verdict := tr.walk(table, r.target, p)
			if verdict != "" || !r.jump {
				return verdict
			}
			continue
		}
		switch verdict := r.apply(p); verdict {
		case "":
		case "RETURN":
			return ""
		default:
			return verdict
		}
	}
	return ""
}

// hook walks from a built-in chain, as the kernel does: the nat table sees new connections only.
func (tr *tracer) hook(table, from string, p *tracePacket) (verdict string) {
	if table == "nat" && p.state != "NEW" {
		return ""
	}
	for _, h := range Hooks {
		if h.Table == table && h.From == from {
			p.evaluated++
			return tr.walk(table, h.To, p)
		}
	}
	return ""
}

// route takes one packet all the way and names its fate.
func (tr *tracer) route(p *tracePacket, fromEdge bool) string {
	first, filter := "PREROUTING", "FORWARD"
	if fromEdge {
		first = "OUTPUT"
	}
	p.original = p.dst
	tr.hook("nat", first, p)
	if p.to.IsValid() {
		p.dst = p.to
	}
	isLocal := p.isLocal(p.dst.Addr())
	if isLocal {
		filter = "INPUT"
	}
	verdict := ""
	if fromEdge {
		verdict = tr.hook("filter", "OUTPUT", p)
	}
	if verdict == "" && (isLocal || !fromEdge) {
		verdict = tr.hook("filter", filter, p)
	}
	if !isLocal && verdict != "DROP" && verdict != "REJECT" {
		tr.hook("nat", "POSTROUTING", p)
	}
	return p.fate(verdict, fromEdge)
}

// fate words the verdict. It names what would be wrong with a forwarded connection: a packet that a FORWARD policy of
// DROP would get, a mark that outlives POSTROUTING, a connection without our connmark.
func (p *tracePacket) fate(verdict string, fromEdge bool) string {
	if !p.to.IsValid() || verdict == "REJECT" || verdict == "DROP" {
		return map[string]string{"": "not ours"}[verdict] + verdict
	}
	fate := p.to.String()
	for _, w := range []struct {
		word string
		is   bool
	}{
		{" masq", p.masq},
		{" snat " + p.snat, p.snat != ""},
		{" unaccepted", verdict != "ACCEPT" && !fromEdge},
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
// edge itself. A leading word ESTABLISHED or INVALID gives another state than NEW; MIDSTREAM is NEW to conntrack, but not
// the first packet of its connection.
func (tr *tracer) trace(flow string) (fate string, cost int) {
	p, fromEdge := parseFlow(flow)
	p.local = tr.local
	var fates []string
	suffix := ""
	for slot := uint32(0); slot == 0 || slot < p.slots; slot++ {
		q := p
		q.slot, q.member, q.beyond = slot, tr.member, tr.beyond
		to, rest, _ := strings.Cut(tr.route(&q, fromEdge), " ")
		fates, p.slots = append(fates, to), q.slots
		suffix = " " + rest
		cost = max(cost, q.evaluated)
	}
	slices.Sort(fates)
	return strings.TrimSpace(strings.Join(slices.Compact(fates), " ") + suffix), cost
}

func parseFlow(flow string) (p tracePacket, fromEdge bool) {
	f := strings.Fields(flow)
	p.state = "NEW"
	if f[1] != "->" {
		p.state, f = f[0], f[1:]
	}
	if p.midstream = p.state == "MIDSTREAM"; p.midstream {
		p.state = "NEW"
	}
	if fromEdge = f[0] == "edge"; fromEdge {
		f[0] = edgeIP
		if strings.HasPrefix(f[3], "[") || strings.Count(f[3], ":") > 1 {
			f[0] = edgeIPv6
		}
	}
	p.src, p.proto, p.dst = flowEnd(f[0], "40000"), f[2], flowEnd(f[3], "0")
	return p, fromEdge
}

func flowEnd(s, port string) netip.AddrPort {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, uint16(number(port)))
	}
	return netip.MustParseAddrPort(s)
}

// newTracer traces a rule set on an edge with the address edgeIP and the VIPs given.
func newTracer(t testing.TB, rs Ruleset, vips ...netip.Addr) *tracer {
	t.Helper()
	var b bytes.Buffer
	if _, err := rs.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	tr, err := readRules(b.String(), append(vips, netip.MustParseAddr(edgeIP), netip.MustParseAddr(edgeIPv6))...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}
