package iptables

import (
	"fmt"
	"slices"
	"sort"
)

const (
	// fanBits is how many bits one level of a tree decides at most: up to 16 rules to scan.
	fanBits = 4
	// leafRules is how many rules a leaf may hold. More make fewer chains, which iptables-nft loads in quadratic
	// time, but a longer scan.
	leafRules = 96
	// entryRules is how many rules may lead into a tree of addresses, where they share less than half of their bits.
	entryRules = 4
)

// A space is a kind of key: how a range of keys is matched by a rule and named in a chain's name.
type space interface {
	// match takes in the items, which are consecutive, and may take in other keys of their common prefix.
	match(block []item) string
	// label names the block of keys that share the first n bits of k.
	label(k key, n int) string
	// length is how many bits a key has.
	length() int
}

// A tree is a decision tree of chains. Items are disjoint and ordered by key. Each level is a chain of at most 16
// gotos, so that the way to an item does not grow with the number of items, and what is no item's leaves early.
type tree struct {
	b    *builder
	name string // of the first chain, and what the names of all others begin with
	by   space
	// write appends an item's rules, which match the whole key themselves.
	write func(*chain, item)
	// stop, if set, appends rules to a leaf after its items.
	stop func(*chain, []item)
	// miss is the rule at the end of each chain, for what no item takes; empty returns to where the tree was entered.
	miss string
	// keep says that leaves are made of their items alone, and need not be made anew for the same ones.
	keep bool
}

// enter builds the tree and appends the rules that lead there, by "-j" or "-g". Addresses that lie far apart get a rule each, so
// that what lies between them does not enter the tree. Other keys do: what no item takes has to find its way by miss, or by
// coming back to the rules that follow, after "-j".
func (t tree) enter(c *chain, by string, items []item) {
	blocks := [][]item{items}
	for len(blocks) < entryRules {
		wide := slices.IndexFunc(blocks, func(b []item) bool { return len(b) > 1 && common(b) < t.by.length()/2 })
		if wide < 0 {
			break
		}
		b := blocks[wide]
		one := firstOne(b, common(b))
		blocks = slices.Replace(blocks, wide, wide+1, b[:one], b[one:])
	}
	for _, b := range blocks {
		c.rule(t.by.match(b), by, t.name)
	}
	t.build(items)
}

// build writes the tree's chains.
func (t tree) build(items []item) { t.fill(t.name, items) }

func (t tree) fill(name string, items []item) {
	if isLeaf(items) {
		t.leaf(name, items)
		return
	}
	c := t.b.chain(name)
	for _, b := range split(items) {
		next := t.child(b)
		c.rule(t.by.match(b.items), "-g", next)
		t.fill(next, b.items)
	}
	if t.miss != "" {
		c.rule(t.miss)
	}
}

// child names the chain of a block. Where the label is too long, as for most prefixes of IPv6, its digest stands for it.
func (t tree) child(b block) string {
	label := t.by.label(b.items[0].key, b.bits)
	if left := maxChainName - len(t.name) - 1; len(label) > left {
		label = digest(left, label)
	}
	return t.name + "-" + label
}

func (t tree) leaf(name string, items []item) {
	if !t.keep {
		t.fillLeaf(name, items)
		return
	}
	t.b.keep(name, items, t.miss, func() { t.fillLeaf(name, items) })
}

func (t tree) fillLeaf(name string, items []item) {
	c := t.b.chain(name)
	for _, it := range items {
		t.write(c, it)
	}
	if t.stop != nil {
		t.stop(c, items)
	}
	if t.miss != "" {
		c.rule(t.miss)
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
		if n += it.rules; n > leafRules {
			return len(items) == 1
		}
	}
	return true
}

// common counts the leading bits that all items share.
func common(items []item) int {
	first, last := items[0], items[len(items)-1]
	return min(commonBits(first.key, last.key), first.bits, last.bits)
}

// numbered names the chains of a tree by numbers, in the order in which they are made.
type numbered struct {
	space
	chains int
}

func (n *numbered) label(key, int) string {
	n.chains++
	return fmt.Sprint(n.chains)
}
