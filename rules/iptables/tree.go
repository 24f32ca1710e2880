package iptables

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"sort"
	"strconv"
)

const (
	// fanBits is how many bits one level of a tree decides at most: up to 16 rules to scan.
	fanBits = 4
	// leafRules is how many rules a leaf may hold. More make fewer chains, which iptables-nft loads in quadratic
	// time, but a longer scan.
	leafRules = 96
	// entryRules is how many rules may lead into a tree of addresses, where they share less than entryBits.
	entryRules, entryBits = 4, 16
)

// A key is what a tree decides on, its bits left-aligned.
type key [16]byte

func addrKey(a netip.Addr) (k key) {
	copy(k[:], a.AsSlice())
	return k
}

func portKey(port uint16) (k key) {
	binary.BigEndian.PutUint16(k[:], port)
	return k
}

func slotKey(slot int) (k key) {
	binary.BigEndian.PutUint32(k[:], uint32(slot)<<(32-slotBits))
	return k
}

func (k key) port() uint16 { return binary.BigEndian.Uint16(k[:]) }
func (k key) slot() uint32 { return binary.BigEndian.Uint32(k[:]) >> (32 - slotBits) }
func (k key) addr() netip.Addr {
	return netip.AddrFrom4([4]byte(k[:4]))
}

func (k key) bit(i int) bool { return k[i/8]>>(7-i%8)&1 == 1 }

// masked returns k with all but its first n bits zero.
func (k key) masked(n int) key {
	for i := range k {
		keep := min(max(n-8*i, 0), 8)
		k[i] &^= 0xff >> keep
	}
	return k
}

// commonBits counts the leading bits that a and b share.
func commonBits(a, b key) int {
	for i := range a {
		if d := a[i] ^ b[i]; d != 0 {
			return 8*i + bits.LeadingZeros8(d)
		}
	}
	return 8 * len(a)
}

// An item is what a tree leads to.
type item struct {
	key   key
	bits  int          // how much of key counts: the item stands for all keys that begin so
	rules int          // how many rules write appends
	write func(*chain) // appends the item's rules, which match the whole key themselves
}

// A space is a kind of key: how a range of keys is matched by a rule and named in a chain's name.
type space interface {
	// match takes in the items, which are consecutive, and may take in other keys of their common prefix.
	match(block []item) string
	// label names the block of keys that share the first n bits of k.
	label(k key, n int) string
}

// A tree is a decision tree of chains. Items are disjoint and ordered by key. Each level is a chain of at most 16
// gotos, so that the way to an item does not grow with the number of items, and what is no item's leaves early.
type tree struct {
	b    *builder
	name string // of the first chain, and what the names of all others begin with
	by   space
	// stop, if set, appends rules to a leaf after its items.
	stop func(*chain, []item)
	// miss is the rule at the end of each chain, for what no item takes; empty returns to where the tree was entered.
	miss string
}

// enter builds the tree and appends the rules that lead there. Addresses that lie far apart get a rule each, so that
// what lies between them does not enter the tree.
func (t tree) enter(c *chain, items []item) {
	blocks := [][]item{items}
	for len(blocks) < entryRules {
		wide := slices.IndexFunc(blocks, func(b []item) bool { return common(b) < entryBits && len(b) > 1 })
		if wide < 0 {
			break
		}
		b := blocks[wide]
		one := firstOne(b, common(b))
		blocks = slices.Replace(blocks, wide, wide+1, b[:one], b[one:])
	}
	for _, b := range blocks {
		c.rule(t.by.match(b), "-g", t.name)
	}
	t.build(items)
}

// build writes the tree's chains.
func (t tree) build(items []item) { t.fill(t.b.chain(t.name), items) }

func (t tree) fill(c *chain, items []item) {
	if isLeaf(items) {
		t.leaf(c, items)
	} else {
		for _, b := range split(items) {
			next := t.b.chain(t.name + "-" + t.by.label(b.items[0].key, b.bits))
			c.rule(t.by.match(b.items), "-g", next.name)
			t.fill(next, b.items)
		}
	}
	if t.miss != "" {
		c.rule(t.miss)
	}
}

func (t tree) leaf(c *chain, items []item) {
	for _, it := range items {
		it.write(c)
	}
	if t.stop != nil {
		t.stop(c, items)
	}
}

// A block is the items whose keys share the first bits.
type block struct {
	bits  int
	items []item
}

// split halves items until each part is a leaf or fanBits deeper than a boundary above. Boundaries are the same for
// all sets of items: a change in one block leaves the chains of its neighbours as they are.
func split(items []item) []block {
	depth := common(items)
	limit := (depth/fanBits + 1) * fanBits
	var blocks []block
	var halve func(block)
	halve = func(b block) {
		if b.bits == limit || b.bits > depth && isLeaf(b.items) {
			blocks = append(blocks, b)
			return
		}
		one := firstOne(b.items, b.bits)
		for _, half := range [][]item{b.items[:one], b.items[one:]} {
			if len(half) > 0 {
				halve(block{b.bits + 1, half})
			}
		}
	}
	halve(block{depth, items})
	return blocks
}

// firstOne returns the first of the items, which are equal up to bit i, whose bit i is one.
func firstOne(items []item, i int) int {
	return sort.Search(len(items), func(k int) bool { return items[k].key.bit(i) })
}

func isLeaf(items []item) bool {
	n := 0
	for _, it := range items {
		n += it.rules
	}
	return n <= leafRules || len(items) == 1
}

// common counts the leading bits that all items share.
func common(items []item) int {
	last := items[len(items)-1]
	return min(commonBits(items[0].key, last.key), items[0].bits, last.bits)
}

// bySource and byDestination are the IPv4 addresses of a packet.
const (
	bySource      = byAddr("-s")
	byDestination = byAddr("-d")
)

type byAddr string

func (a byAddr) match(block []item) string {
	n := common(block)
	return string(a) + " " + netip.PrefixFrom(block[0].key.masked(n).addr(), n).String()
}

func (a byAddr) label(k key, n int) string { return netip.PrefixFrom(k.masked(n).addr(), n).String() }

// byPort is the destination port of a protocol, given in lower case.
type byPort string

func (p byPort) match(block []item) string {
	return portMatch(string(p), block[0].key.port(), block[len(block)-1].key.port())
}

func (p byPort) label(k key, n int) string {
	first := k.masked(n).port()
	return fmt.Sprintf("%d-%d", first, first|0xffff>>n)
}

// portMatch matches a range of destination ports.
func portMatch(protocol string, first, last uint16) string {
	return "-p " + protocol + " -m " + protocol + " --dport " + portRange(first, last)
}

func portRange(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return strconv.Itoa(int(first)) + ":" + strconv.Itoa(int(last))
}

// bySlot is the hash slot in the packet mark, above which stands the value given.
type bySlot uint32

func (s bySlot) match(block []item) string {
	n := common(block)
	mask := uint32(wholeMask) << (slotBits - n)
	return "-m mark --mark " + markValue(uint32(s)|block[0].key.masked(n).slot(), mask)
}

func (s bySlot) label(k key, n int) string { return fmt.Sprintf("%05x/%d", k.masked(n).slot(), n) }

// merge covers addresses, which are ordered and distinct, exactly by the fewest prefixes.
func merge(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		p := netip.PrefixFrom(a, a.BitLen())
		for len(out) > 0 { // the last prefix may be the lower half of the block that p completes
			last := out[len(out)-1]
			whole := netip.PrefixFrom(last.Addr(), p.Bits()-1)
			if last.Bits() != p.Bits() || whole != whole.Masked() || !whole.Contains(p.Addr()) {
				break
			}
			out, p = out[:len(out)-1], whole
		}
		out = append(out, p)
	}
	return out
}
