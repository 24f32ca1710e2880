package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A cursor reads the words of a rule.
type cursor struct {
	rule  string
	words []string
}

// next takes a word.
func (c *cursor) next() string {
	if len(c.words) == 0 {
		panic(fmt.Sprintf("rule %q ends early", c.rule))
	}
	w := c.words[0]
	c.words = c.words[1:]
	return w
}

// take takes words if they come next.
func (c *cursor) take(text string) bool {
	f := strings.Fields(text)
	if len(c.words) < len(f) || !slices.Equal(c.words[:len(f)], f) {
		return false
	}
	c.words = c.words[len(f):]
	return true
}

// must takes words, which have to come next.
func (c *cursor) must(text string) {
	if !c.take(text) {
		panic(fmt.Sprintf("rule %q: %q is unknown to the tracer, where %q is expected", c.rule, strings.Join(c.words, " "), text))
	}
}

// rule applies the statements of a rule, until one does not match. done says that the walk of the chain is over.
func (p *packet) rule(text string) (verdict string, done bool) {
	c := &cursor{text, strings.Fields(text)}
	for len(c.words) > 0 {
		matched := false
		if verdict, done, matched = p.statement(c); !matched || verdict != "" || done {
			return verdict, done
		}
	}
	return "", false
}

func (p *packet) statement(c *cursor) (verdict string, done, matched bool) {
	for _, word := range []string{"accept", "drop", "return"} {
		if c.take(word) {
			return word, true, true
		}
	}
	switch {
	case c.take("jump"):
		return p.walk(c.next()), false, true
	case c.take("goto"):
		return p.walk(c.next()), true, true
	case c.take("reject with tcp reset"):
		if p.proto != "tcp" {
			panic("a reset of what is not TCP")
		}
		return "reject", true, true
	case c.take("reject"):
		return "reject", true, true
	case c.take("masquerade fully-random"):
		p.source = "masq"
		return "accept", true, true
	case c.take("snat to"):
		p.source = "snat " + c.next()
		c.must("persistent")
		return "accept", true, true
	case c.take("dnat ip to"), c.take("dnat ip6 to"):
		return p.dnat(c)
	case c.take("ct mark set ct mark and"):
		mask := number(c.next())
		c.must("or")
		p.connmark = p.connmark&mask | number(c.next())
		return "", false, true
	case c.take("meta mark set"):
		return "", false, p.setMark(c)
	case c.take("update"), c.take("add"):
		return "", false, p.dynamic(c)
	case c.take("delete"):
		return "", false, p.delete(c)
	default:
		return p.match(c)
	}
}

func (p *packet) dnat(c *cursor) (verdict string, done, matched bool) {
	value, found := p.lookup(c)
	if !found {
		return "", false, false
	}
	addr, port, _ := strings.Cut(value, " . ")
	p.dst = netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(number(port)))
	p.translated = true
	return "accept", true, true
}

func (p *packet) setMark(c *cursor) bool {
	if c.take("0x0") {
		p.mark = 0
		return true
	}
	value, found := p.lookup(c)
	if found {
		p.mark = number(value)
	}
	return found
}

// lookup reads "key map @name".
func (p *packet) lookup(c *cursor) (value string, found bool) {
	key, ok := p.expression(c)
	c.must("map")
	return p.set(c).find(key, ok)
}

func (p *packet) set(c *cursor) *set {
	name := c.next()
	s := p.sets[strings.TrimPrefix(name, "@")]
	if s == nil {
		panic(fmt.Sprintf("rule %q: %s is no set", c.rule, name))
	}
	return s
}

// dynamic reads what adds to a set. With a limit, it matches what is beyond.
func (p *packet) dynamic(c *cursor) (matched bool) {
	s := p.set(c)
	c.must("{")
	key, _ := p.expression(c)
	timeout := ""
	if c.take("timeout") {
		timeout = c.next()
	}
	switch {
	case c.take("limit rate over"):
		c.next() // n/second
		c.must("burst")
		c.next()
		c.must("packets")
		matched = p.Beyond == "rate"
	case c.take("ct count over"):
		c.next()
		matched = p.Beyond == "connections"
	case c.take(":"):
		value, _ := p.expression(c)
		if _, there := s.elements[key]; !there { // or else the kernel leaves the value as it is
			s.elements[key] = value
		}
		p.until, matched = timeout, true
	}
	c.must("}")
	return matched
}

// delete reads what takes an element from a map.
func (p *packet) delete(c *cursor) (matched bool) {
	s := p.set(c)
	c.must("{")
	key, _ := p.expression(c)
	c.must(":")
	p.expression(c)
	c.must("}")
	_, matched = s.elements[key]
	delete(s.elements, key)
	return matched
}

// match reads an expression and what it is compared with.
func (p *packet) match(c *cursor) (verdict string, done, matched bool) {
	value, has := p.expression(c)
	if c.take("vmap") {
		to, found := p.set(c).find(value, has)
		if !found {
			return "", false, false
		}
		return p.statement(&cursor{c.rule, strings.Fields(to)})
	}
	not := c.take("!=")
	if !not {
		c.take("==")
	}
	var is bool
	switch {
	case strings.HasPrefix(c.words[0], "@"):
		_, is = p.set(c).find(value, has)
	case c.take("{"):
		for !c.take("}") {
			is = covers(strings.TrimSuffix(c.next(), ","), value) || is
		}
	default:
		for want := range strings.SplitSeq(c.next(), ",") {
			is = covers(want, value) || is
		}
	}
	return "", false, has && is != not
}

// expression reads fields joined by dots. has says whether the packet has them all.
func (p *packet) expression(c *cursor) (value string, has bool) {
	has = true
	for {
		part, ok := p.field(c)
		if c.take("and") {
			part = masked(part, c.next())
		}
		value, has = value+part, has && ok
		if !c.take(".") {
			return value, has
		}
		value += " . "
	}
}

func (p *packet) field(c *cursor) (value string, has bool) {
	port := func(n uint16) string { return strconv.Itoa(int(n)) }
	hasPorts := p.proto == "tcp" || p.proto == "udp" || p.proto == "sctp"
	switch {
	case c.take("ip daddr"), c.take("ip6 daddr"):
		return p.dst.Addr().String(), true
	case c.take("ip saddr"), c.take("ip6 saddr"):
		return p.src.Addr().String(), true
	case c.take("ct original ip daddr"), c.take("ct original ip6 daddr"):
		return p.origin.Addr().String(), true
	case c.take("meta l4proto"):
		return p.proto, true
	case c.take("th dport"), c.take(p.proto + " dport"):
		return port(p.dst.Port()), hasPorts
	case c.take("th sport"), c.take(p.proto + " sport"):
		return port(p.src.Port()), hasPorts
	case c.take("tcp dport"), c.take("tcp sport"): // of another protocol
		return "", false
	case c.take("meta mark"):
		return hex(p.mark), true
	case c.take("ct mark"):
		return hex(p.connmark), p.state == "new" || p.state == "established"
	case c.take("ct state"):
		return p.state, true
	case c.take("fib daddr type"):
		return addressType(p.isLocal(p.dst.Addr())), true
	case c.take("fib saddr type"):
		return addressType(p.isLocal(p.src.Addr())), true
	case c.take("tcp flags & (fin | syn | rst | ack)"):
		return map[bool]string{true: "ack", false: "syn"}[p.midstream], p.proto == "tcp"
	case c.take("jhash"):
		return p.hash(c), true
	}
	panic(fmt.Sprintf("rule %q: %q is unknown to the tracer", c.rule, strings.Join(c.words, " ")))
}

func addressType(local bool) string {
	if local {
		return "local"
	}
	return "unicast"
}

// hash has the packet choose its slot by itself.
func (p *packet) hash(c *cursor) string {
	value, _ := p.expression(c)
	c.must("mod")
	modulus := number(c.next())
	c.must("seed")
	number(c.next())
	switch {
	case modulus < 2:
		panic("the kernel refuses jhash modulo 1")
	case modulus > 1<<16: // stands for the address itself
		return value
	}
	p.slots = modulus
	return strconv.Itoa(int(p.slot % p.slots))
}

func masked(value, mask string) string {
	if m, err := netip.ParseAddr(mask); err == nil {
		bits := 0
		for _, b := range m.AsSlice() {
			for ; b != 0; b <<= 1 {
				bits++
			}
		}
		prefix, _ := netip.MustParseAddr(value).Prefix(bits)
		return prefix.Addr().String()
	}
	return hex(number(value) & number(mask))
}

func hex(mark uint32) string { return "0x" + strconv.FormatUint(uint64(mark), 16) }

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		panic(err)
	}
	return uint32(n)
}

// find looks up a key, in sets of intervals part by part.
func (s *set) find(key string, has bool) (value string, found bool) {
	if !has {
		return "", false
	}
	if value, found = s.elements[key]; found || !strings.Contains(s.spec, "interval") {
		return value, found
	}
	for k, v := range s.elements {
		if covers(k, key) {
			return v, true
		}
	}
	return "", false
}

// covers says whether an element, of prefixes, ranges and single values, has a key.
func covers(element, key string) bool {
	wants, has := strings.Split(element, " . "), strings.Split(key, " . ")
	return len(wants) == len(has) && !slices.ContainsFunc(wants, func(want string) bool {
		defer func() { has = has[1:] }()
		if prefix, err := netip.ParsePrefix(want); err == nil {
			addr, err := netip.ParseAddr(has[0])
			return err != nil || !prefix.Contains(addr)
		}
		if first, last, isRange := strings.Cut(want, "-"); isRange && want[0] >= '0' && want[0] <= '9' {
			return number(has[0]) < number(first) || number(has[0]) > number(last)
		}
		return want != has[0]
	})
}
