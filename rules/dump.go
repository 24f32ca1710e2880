package rules

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
)

// A dump is what a backend holds, by table. It is read for Inspect only: with many rules that takes seconds.
type dump map[string]*dumpedTable

type dumpedTable struct {
	policies map[string]string   // of the built-in chains, such as DROP
	rules    map[string][]string // by chain, as iptables-save prints them; of a chain without rules, nil
}

// dump reads a backend. Of legacy, no table is made by that.
func (f flavour) dump(ctx context.Context) (dump, error) {
	if used, err := f.inUse(""); err != nil || !used {
		return nil, err
	}
	out, err := f.save(ctx)
	if err != nil {
		return nil, err
	}
	return parseDump(out), nil
}

// dumpTable reads one table, which legacy does not make by that.
func (f flavour) dumpTable(ctx context.Context, table string) (dump, error) {
	if used, err := f.inUse(table); err != nil || !used {
		return nil, err
	}
	out, err := f.save(ctx, "-t", table)
	return parseDump(out), err
}

func parseDump(out []byte) dump {
	d := dump{}
	var t *dumpedTable
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			t = &dumpedTable{map[string]string{}, map[string][]string{}}
			d[line[1:]] = t
		case t == nil:
		case strings.HasPrefix(line, ":"):
			if f := strings.Fields(line[1:]); len(f) > 1 {
				t.rules[f[0]] = nil
				if f[1] != "-" {
					t.policies[f[0]] = f[1]
				}
			}
		case strings.HasPrefix(line, "-A "):
			chain, _, _ := strings.Cut(line[len("-A "):], " ")
			t.rules[chain] = append(t.rules[chain], line)
		}
	}
	return d
}

func (d dump) policy(table, chain string) string {
	if t := d[table]; t != nil {
		return t.policies[chain]
	}
	return ""
}

// holds says whether a table has all of the rules, given as iptables-save prints them but for -A.
func (d dump) holds(table string, rules ...string) bool {
	t := d[table]
	return t != nil && !slices.ContainsFunc(rules, func(rule string) bool {
		chain, _, _ := strings.Cut(rule, " ")
		return !slices.Contains(t.rules[chain], "-A "+rule)
	})
}

// mayDrop says whether a built-in chain does anything but accept and send to us.
func (d dump) mayDrop(h iptables.Hook) bool {
	t := d[h.Table]
	return t != nil && (t.policies[h.From] == "DROP" || slices.ContainsFunc(t.rules[h.From], func(rule string) bool { return rule != h.Line() }))
}

// hasChain says whether the name of a chain, in any table, begins so.
func (d dump) hasChain(begin string) bool {
	for _, t := range d {
		for name := range t.rules {
			if strings.HasPrefix(name, begin) {
				return true
			}
		}
	}
	return false
}

// foreign counts the rules that are not ours, and names their tables.
func (d dump) foreign() (count int, tables []string) {
	for name, t := range d {
		n := 0
		for chain, rules := range t.rules {
			if !strings.HasPrefix(chain, iptables.Prefix) {
				n += len(slices.DeleteFunc(slices.Clone(rules), leadsToOurs))
			}
		}
		if n > 0 {
			count += n
			tables = append(tables, name)
		}
	}
	slices.Sort(tables)
	return count, tables
}

// before counts the rules that stand before a hook; none if there is no such iptables.Hook.
func (d dump) before(h iptables.Hook) int {
	t := d[h.Table]
	if t == nil {
		return 0
	}
	return max(0, slices.Index(t.rules[h.From], h.Line()))
}

// drops counts the rules that drop packets in a chain, or in one that it jumps to.
func (d dump) drops(table, chain string) int {
	t := d[table]
	if t == nil {
		return 0
	}
	n := 0
	seen := map[string]bool{}
	for next := []string{chain}; len(next) > 0; next = next[1:] {
		if seen[next[0]] {
			continue
		}
		seen[next[0]] = true
		for _, rule := range t.rules[next[0]] {
			if strings.HasSuffix(rule, " -j DROP") {
				n++
			}
			for other := range maps.Keys(t.rules) {
				if strings.HasSuffix(rule, " -j "+other) || strings.HasSuffix(rule, " -g "+other) {
					next = append(next, other)
				}
			}
		}
	}
	return n
}

// A baseChain is a chain of nf_tables that the kernel sends packets to by itself.
type baseChain struct {
	family, table, name string // as the command nft takes them
	hook                int    // unix.NF_INET_…
	drops               bool   // its policy: what it does not accept
}

// nftFamilies are those that see packets on their way through this machine.
var nftFamilies = map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}

// iptablesTables are the tables of families ip and ip6 that iptables-nft and ip6tables-nft keep.
var iptablesTables = []string{"filter", "nat", "mangle", "raw", "security"}

// baseChains asks the kernel, since the command nft need not be there. Chains of iptables-nft are left out.
func baseChains() (list []baseChain, err error) {
	const getChains, newChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN, unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN
	request := nl.NewNetlinkRequest(getChains, unix.NLM_F_DUMP)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_UNSPEC, Version: nl.NFNETLINK_V0})
	answers, err := request.Execute(unix.NETLINK_NETFILTER, newChain)
	if err != nil {
		return nil, fmt.Errorf("list chains of nf_tables: %w", err)
	}
	for _, data := range answers {
		if c, ok := parseBaseChain(data); ok && (c.family == "inet" || !slices.Contains(iptablesTables, c.table)) {
			list = append(list, c)
		}
	}
	return list, nil
}

// parseBaseChain reads the attributes of a chain (enum nft_chain_attributes, nft_hook_attributes).
func parseBaseChain(data []byte) (c baseChain, ok bool) {
	if len(data) < nl.SizeofNfgenmsg {
		return c, false
	}
	attrs, err := nl.ParseRouteAttr(data[nl.SizeofNfgenmsg:])
	if err != nil {
		return c, false
	}
	c.family, ok = nftFamilies[data[0]]
	c.table, c.name = attribute(attrs, unix.NFTA_CHAIN_TABLE), attribute(attrs, unix.NFTA_CHAIN_NAME)
	c.hook = -1
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_CHAIN_POLICY:
			c.drops = len(a.Value) == 4 && binary.BigEndian.Uint32(a.Value) == 0 // NF_DROP
		case unix.NFTA_CHAIN_HOOK:
			c.hook = hookNumber(a.Value)
		}
	}
	return c, ok && c.hook >= 0
}

func hookNumber(nested []byte) int {
	attrs, err := nl.ParseRouteAttr(nested)
	if err != nil {
		return -1
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.NFTA_HOOK_HOOKNUM && len(a.Value) == 4 {
			return int(binary.BigEndian.Uint32(a.Value))
		}
	}
	return -1
}

// attribute gives the value of a string attribute, or is empty.
func attribute(attrs []syscall.NetlinkRouteAttr, t uint16) string {
	for _, a := range attrs {
		if a.Attr.Type == t {
			name, _, _ := bytes.Cut(a.Value, []byte{0})
			return string(name)
		}
	}
	return ""
}
