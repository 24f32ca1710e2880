package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// values is how many values an option of a match has, if not one.
var values = map[string]int{"--tcp-flags": 2, "--match-set": 2, "--connlimit-saddr": 0}

func parseRule(f []string) (traceRule, error) {
	var r traceRule
	module, not := "", false
	for i := 0; i < len(f); i++ {
		if f[i] == "!" {
			not = true
			continue
		}
		option, n := f[i], 1
		if special, ok := values[option]; ok {
			n = special
		}
		if i+n >= len(f) {
			return r, fmt.Errorf("%s has no value", option)
		}
		value := strings.Join(f[i+1:i+1+n], " ")
		i += n
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
	if option == "-s" || option == "-d" || option == "-p" {
		module = "" // they may stand anywhere
	}
	switch module + " " + option {
	case " -s":
		net, err := netip.ParsePrefix(value)
		return func(p *tracePacket) bool { return net.Contains(p.src.Addr()) }, err
	case " -d":
		net, err := netip.ParsePrefix(value)
		return func(p *tracePacket) bool { return net.Contains(p.dst.Addr()) }, err
	case " -p":
		return func(p *tracePacket) bool { return p.proto == value }, nil
	case "tcp --dport", "udp --dport", "sctp --dport":
		first, last, err := parsePorts(value)
		return func(p *tracePacket) bool { return first <= p.dst.Port() && p.dst.Port() <= last }, err
	case "tcp --sport", "udp --sport":
		first, last, err := parsePorts(value)
		return func(p *tracePacket) bool { return first <= p.src.Port() && p.src.Port() <= last }, err
	case "tcp --tcp-flags":
		if value != "FIN,SYN,RST,ACK SYN" {
			return nil, fmt.Errorf("flags %s are unknown to the tracer", value)
		}
		return func(p *tracePacket) bool { return p.proto == "tcp" && !p.midstream }, nil
	case "set --match-set":
		name, _ := strings.CutSuffix(value, " src")
		return func(p *tracePacket) bool { return p.member == name }, nil
	case "hashlimit --hashlimit-above":
		return func(p *tracePacket) bool { return p.beyond == "rate" }, nil
	case "connlimit --connlimit-above":
		return func(p *tracePacket) bool { return p.beyond == "connections" }, nil
	case "hashlimit --hashlimit-burst", "hashlimit --hashlimit-mode", "hashlimit --hashlimit-srcmask", "hashlimit --hashlimit-htable-max",
		"hashlimit --hashlimit-htable-size", "hashlimit --hashlimit-htable-expire",
		"hashlimit --hashlimit-name", "connlimit --connlimit-mask", "connlimit --connlimit-saddr":
		return func(*tracePacket) bool { return true }, nil
	case "mark --mark":
		mark, mask, err := parseMark(value)
		return func(p *tracePacket) bool { return p.mark&mask == mark }, err
	case "connmark --mark":
		mark, mask, err := parseMark(value)
		return func(p *tracePacket) bool { return p.connmark&mask == mark }, err
	case "conntrack --ctorigdst":
		net, err := netip.ParsePrefix(value)
		return func(p *tracePacket) bool { return net.Contains(p.original.Addr()) }, err
	case "conntrack --ctorigdstport":
		first, last, err := parsePorts(value)
		return func(p *tracePacket) bool { return first <= p.original.Port() && p.original.Port() <= last }, err
	case "conntrack --ctstate":
		states := strings.Split(value, ",")
		return func(p *tracePacket) bool { return slices.Contains(states, p.state) }, nil
	case "addrtype --src-type":
		return func(p *tracePacket) bool { return p.isLocal(p.src.Addr()) }, nil
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
