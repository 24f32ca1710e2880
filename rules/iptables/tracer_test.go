package iptables

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// edgeIP is the edge's own address.
const edgeIP = "192.0.2.1"

// A tracer reads rules as iptables-restore does and tells what becomes of a packet.
type tracer struct {
	tables map[string]map[string][]traceRule
	local  []netip.Addr // addresses of the edge, VIPs included
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
	state          string // NEW, ESTABLISHED, INVALID
	mark, connmark uint32
	slot, slots    uint32 // what HMARK is to choose, and out of how many it chose
	local          []netip.Addr
	evaluated      int
	to             netip.AddrPort
	masq           bool
}

// readRules parses rules and refuses what could not work: jumps to nowhere, chains that nothing leads to.
func readRules(text string, local ...netip.Addr) (*tracer, error) {
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
	return tr, tr.lint()
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

func parseRule(f []string) (traceRule, error) {
	var r traceRule
	module, not := "", false
	for i := 0; i < len(f); i++ {
		if f[i] == "!" {
			not = true
			continue
		}
		if i+1 == len(f) {
			return r, fmt.Errorf("%s has no value", f[i])
		}
		option, value := f[i], f[i+1]
		i++
		if option == "-j" || option == "-g" {
			r.target, r.jump, r.args = value, option == "-j", f[i+1:]
			return r, checkTarget(r)
		}
		if option == "-m" {
			module = value
			continue
		}
		match, err := parseMatch(module, option, value)
		if err != nil {
			return r, err
		}
		if not {
			positive := match
			match, not = func(p *tracePacket) bool { return !positive(p) }, false
		}
		r.matches = append(r.matches, match)
	}
	return r, fmt.Errorf("no target")
}

func parseMatch(module, option, value string) (func(*tracePacket) bool, error) {
	switch module + " " + option {
	case " -s":
		net, err := netip.ParsePrefix(value)
		return func(p *tracePacket) bool { return net.Contains(p.src.Addr()) }, err
	case " -d":
		net, err := netip.ParsePrefix(value)
		return func(p *tracePacket) bool { return net.Contains(p.dst.Addr()) }, err
	case " -p":
		return func(p *tracePacket) bool { return p.proto == value }, nil
	case "tcp --dport", "udp --dport":
		first, last, err := parsePorts(value)
		return func(p *tracePacket) bool { return first <= p.dst.Port() && p.dst.Port() <= last }, err
	case "tcp --sport", "udp --sport":
		first, last, err := parsePorts(value)
		return func(p *tracePacket) bool { return first <= p.src.Port() && p.src.Port() <= last }, err
	case "mark --mark":
		mark, mask, err := parseMark(value)
		return func(p *tracePacket) bool { return p.mark&mask == mark }, err
	case "connmark --mark":
		mark, mask, err := parseMark(value)
		return func(p *tracePacket) bool { return p.connmark&mask == mark }, err
	case "conntrack --ctstate":
		states := strings.Split(value, ",")
		return func(p *tracePacket) bool { return slices.Contains(states, p.state) }, nil
	case "addrtype --dst-type":
		return func(p *tracePacket) bool { return p.isLocal(p.dst.Addr()) }, nil
	case "comment --comment":
		return func(*tracePacket) bool { return true }, nil
	}
	return nil, fmt.Errorf("match %q %s is unknown to the tracer", module, option)
}

func parsePorts(s string) (first, last uint16, err error) {
	low, high, isRange := strings.Cut(s, ":")
	if !isRange {
		high = low
	}
	a, err1 := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	if err1 != nil || err2 != nil || a > b {
		return 0, 0, fmt.Errorf("bad ports %q", s)
	}
	return uint16(a), uint16(b), nil
}

func parseMark(s string) (mark, mask uint32, err error) {
	value, maskText, hasMask := strings.Cut(s, "/")
	v, err1 := strconv.ParseUint(value, 0, 32)
	m, err2 := uint64(wholeMask), error(nil)
	if hasMask {
		m, err2 = strconv.ParseUint(maskText, 0, 32)
	}
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("bad mark %q", s)
	}
	return uint32(v), uint32(m), nil
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
	case "MARK":
		p.mark = setXmark(p.mark, argument(r.args, "--set-xmark"))
	case "CONNMARK":
		p.connmark = setXmark(p.connmark, argument(r.args, "--set-xmark"))
	case "HMARK":
		if got := argument(r.args, "--hmark-tuple"); got != "src,sport" {
			panic("HMARK over " + got)
		}
		p.slots = number(argument(r.args, "--hmark-mod"))
		p.mark = number(argument(r.args, "--hmark-offset")) + p.slot%p.slots
	default:
		panic("unknown target " + r.target)
	}
	return ""
}

func argument(args []string, name string) string {
	return args[slices.Index(args, name)+1]
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		panic(err)
	}
	return uint32(n)
}

func setXmark(old uint32, value string) uint32 {
	mark, mask, err := parseMark(value)
	if err != nil {
		panic(err)
	}
	return old&^mask ^ mark
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
	tr.hook("nat", first, p)
	if p.to.IsValid() {
		p.dst = p.to
	}
	isLocal := p.isLocal(p.dst.Addr())
	if isLocal {
		filter = "INPUT"
	}
	verdict := ""
	if isLocal || !fromEdge {
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
// edge itself. A leading word ESTABLISHED or INVALID gives another state than NEW.
func (tr *tracer) trace(flow string) (fate string, cost int) {
	p, fromEdge := parseFlow(flow)
	p.local = tr.local
	var fates []string
	suffix := ""
	for slot := uint32(0); slot == 0 || slot < p.slots; slot++ {
		q := p
		q.slot = slot
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
	if fromEdge = f[0] == "edge"; fromEdge {
		f[0] = edgeIP
	}
	p.src, p.proto, p.dst = flowEnd(f[0], "40000"), f[2], flowEnd(f[3], "0")
	return p, fromEdge
}

func flowEnd(s, port string) netip.AddrPort {
	if !strings.Contains(s, ":") {
		s += ":" + port
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
	tr, err := readRules(b.String(), append(vips, netip.MustParseAddr(edgeIP))...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTracer(t *testing.T) {
	const text = `*filter
:SALLY-INPUT - [0:0]
:SALLY-FORWARD - [0:0]
-A SALLY-FORWARD -m mark --mark 0x53100000/0xfff00000 -j ACCEPT
-A SALLY-INPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
:SALLY-SERVICES - [0:0]
:SALLY-POSTROUTING - [0:0]
:SALLY-A - [0:0]
:SALLY-B - [0:0]
-A SALLY-SERVICES ! -d 198.51.100.0/24 -p tcp -m tcp --dport 80:90 -g SALLY-A
-A SALLY-SERVICES -p udp -j SALLY-B
-A SALLY-SERVICES -p udp -j DNAT --to-destination 10.9.9.9:9
-A SALLY-A -j HMARK --hmark-tuple src,sport --hmark-mod 2 --hmark-offset 0x53100000 --hmark-rnd 0x1
-A SALLY-A -m mark --mark 0x53100000 -j DNAT --to-destination 10.0.0.1:80
-A SALLY-A -m mark --mark 0x53100001 -j DNAT --to-destination 10.0.0.2:80
-A SALLY-B -s 203.0.113.0/24 -j RETURN
-A SALLY-B -j MARK --set-xmark 0x53100000/0xffffffff
-A SALLY-POSTROUTING -m mark --mark 0x53100000/0xfff00000 -j MASQUERADE
COMMIT
`
	tr, err := readRules(text, netip.MustParseAddr(edgeIP))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ flow, want string }{
		{"192.0.2.9 -> tcp 192.0.2.1:85", "10.0.0.1:80 10.0.0.2:80 masq marked unconnected"},
		{"192.0.2.9 -> tcp 192.0.2.1:91", "not ours"},
		{"192.0.2.9 -> tcp 198.51.100.7:85", "not ours"},
		{"192.0.2.9 -> udp 192.0.2.1:85", "10.9.9.9:9 masq marked unconnected"},
		{"203.0.113.1 -> udp 192.0.2.1:85", "10.9.9.9:9 unaccepted unconnected"},
		{"ESTABLISHED 192.0.2.9 -> tcp 192.0.2.1:85", "not ours"},
		{"INVALID 192.0.2.9 -> tcp 192.0.2.1:85", "DROP"},
	} {
		got, _ := tr.trace(tt.flow)
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.flow, got, tt.want)
		}
	}
}

func TestTracerRefuses(t *testing.T) {
	const skeleton = "*filter\n:SALLY-INPUT - [0:0]\n:SALLY-FORWARD - [0:0]\nCOMMIT\n*nat\n:SALLY-SERVICES - [0:0]\n:SALLY-POSTROUTING - [0:0]\n"
	for _, tt := range []struct{ name, lines, want string }{
		{"dangling jump", "-A SALLY-SERVICES -j SALLY-NONE", "-A SALLY-SERVICES -j SALLY-NONE: leads to missing chain"},
		{"unreferenced chain", ":SALLY-LONELY - [0:0]", "nat: nothing leads to chain SALLY-LONELY"},
		{"undeclared chain", "-A SALLY-X -j ACCEPT", "-A SALLY-X -j ACCEPT: chain is not declared"},
		{"unknown match", "-A SALLY-SERVICES -m recent --set x -j ACCEPT", `-A SALLY-SERVICES -m recent --set x -j ACCEPT: match "recent" --set is unknown to the tracer`},
		{"unknown target", "-A SALLY-SERVICES -j NOTRACK", `-A SALLY-SERVICES -j NOTRACK: target NOTRACK with arguments [] is unknown to the tracer`},
		{"bad destination", "-A SALLY-SERVICES -j DNAT --to-destination x", `-A SALLY-SERVICES -j DNAT --to-destination x: target DNAT with arguments ["--to-destination" "x"] is unknown to the tracer`},
		{"no target", "-A SALLY-SERVICES -p tcp", "-A SALLY-SERVICES -p tcp: no target"},
		{"second line in a name", "-A SALLY-SERVICES -m comment --comment a\n-F -j ACCEPT", `-A SALLY-SERVICES -m comment --comment a: no target`},
		{"not a rule", "hello", `line not understood: "hello\n"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := readRules(skeleton + tt.lines + "\nCOMMIT\n")
			if fmt.Sprint(err) != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}
