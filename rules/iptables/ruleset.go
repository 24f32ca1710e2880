package iptables

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"sallyport/rules/plan"
)

// A Ruleset is what Sallyport wants in the kernel, table by table, in the order in which to apply them.
type Ruleset struct {
	Family plan.Family
	Sets   []Set // ordered by name; they have to stand before rules that name them are written
	Tables []Table
}

// A Set is one of ipset that rules add clients to (type hash:ip). What it holds is of use until it is in Sets no more.
type Set struct {
	Name   string // 31 characters
	Family plan.Family
	// Timeout is when entries are forgotten. Rules give theirs with each entry, so that a set made with another one will do.
	Timeout time.Duration
}

// String is the set as ipset create reads it.
func (s Set) String() string {
	family := "inet"
	if s.Family == plan.IPv6 {
		family = "inet6"
	}
	return fmt.Sprintf("%s hash:ip family %s timeout %d", s.Name, family, seconds(s.Timeout))
}

// seconds rounds up: a timeout of 0 would be none.
func seconds(d time.Duration) int { return max(1, int((d+time.Second-1)/time.Second)) }

func (s Set) compare(other Set) int { return cmp.Compare(s.Name, other.Name) }

// A Table holds our chains of one iptables table, ordered by name.
type Table struct {
	Name   string // filter or nat
	Chains []Chain
}

// A Chain is a user-defined chain with its rules.
type Chain struct {
	Name string
	Text []byte // the rules as iptables-restore reads them, each as "-A NAME …\n"
}

// Rules counts the rules in the table.
func (t Table) Rules() int {
	n := 0
	for _, c := range t.Chains {
		n += c.Rules()
	}
	return n
}

// Rules counts them.
func (c Chain) Rules() int { return bytes.Count(c.Text, []byte{'\n'}) }

// Entries is how many entries of a table of ip_tables the chains are: a chain has a head and an end beside its rules.
func (t Table) Entries() int { return t.Rules() + 2*len(t.Chains) }

// WriteTo prints the rule set as the input of iptables-restore --noflush that makes it from nothing. Sets, and the jumps from
// the built-in chains, which are made one by one, are there as comments.
func (r Ruleset) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "# create %s\n", s)
	}
	for _, t := range r.Tables {
		for _, h := range Hooks {
			if h.Table == t.Name {
				fmt.Fprintf(&b, "# -A %s -j %s\n", h.From, h.To)
			}
		}
		b.Write(t.Change(t.Chains, nil, nil))
	}
	return b.WriteTo(w)
}

// Change gives the input of iptables-restore --noflush that in one transaction runs the commands (complete lines),
// writes the chains anew and removes those that are gone.
func (t Table) Change(write []Chain, gone, commands []string) []byte {
	var b bytes.Buffer
	b.Grow(changeSize(write, gone, commands)) // it may be 10 MB, which growing would copy again and again
	fmt.Fprintf(&b, "*%s\n", t.Name)
	for _, c := range write {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c.Name) // declaring a chain empties it
	}
	for _, name := range gone {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, line := range commands {
		b.WriteString(line + "\n")
	}
	for _, c := range write {
		b.Write(c.Text)
	}
	for _, name := range gone { // last, when nothing refers to them any more
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}

// changeSize is about how long the text of a change is.
func changeSize(write []Chain, gone, commands []string) int {
	const line = 2 * (maxChainName + len(":  - [0:0]")) // the name of a chain stands in two lines at most
	n := line * (1 + len(write) + len(gone))
	for _, c := range write {
		n += len(c.Text)
	}
	for _, c := range commands {
		n += len(c) + 1
	}
	return n
}

// Since compares t with what was applied before: the chains to write and the names of those that are gone.
func (t Table) Since(old Table) (write []Chain, gone []string) {
	byName := func(c Chain, name string) int { return cmp.Compare(c.Name, name) }
	for _, c := range t.Chains {
		i, found := slices.BinarySearchFunc(old.Chains, c.Name, byName)
		if !found || !bytes.Equal(old.Chains[i].Text, c.Text) {
			write = append(write, c)
		}
	}
	return write, t.Without(old.Names())
}

// Without returns those names that are no chain of t.
func (t Table) Without(names []string) []string {
	own := t.Names()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		_, found := slices.BinarySearch(own, name)
		return found
	})
}

// Names lists the chains.
func (t Table) Names() []string {
	names := make([]string, len(t.Chains))
	for i, c := range t.Chains {
		names[i] = c.Name
	}
	return names
}

// A builder collects the chains of one table.
type builder struct {
	name   string
	chains []*chain
	kept   map[string]*kept // what was made for this plan and those before, by a name
	round  int              // of this plan
}

// kept are chains, and what they were made of.
type kept struct {
	items  []item
	miss   string
	chains []*chain
	round  int // of the last plan that has them
}

// chain adds an empty chain.
func (b *builder) chain(name string) *chain {
	c := &chain{name: name}
	b.chains = append(b.chains, c)
	return c
}

// keep adds the chains that make adds, or those that it added last, for the same items.
func (b *builder) keep(name string, items []item, miss string, make func()) {
	k := b.kept[name]
	if k != nil && k.miss == miss && slices.EqualFunc(k.items, items, item.same) {
		b.chains = append(b.chains, k.chains...)
	} else {
		first := len(b.chains)
		make()
		k = &kept{miss: miss, chains: slices.Clone(b.chains[first:])}
		b.kept[name] = k
	}
	// The items are the new ones also if they are the same: to keep the others would keep the snapshot that they point to.
	k.items, k.round = items, b.round
}

// once adds what make adds, once a plan.
func (b *builder) once(name string, it item, make func()) {
	if k := b.kept[name]; k == nil || k.round != b.round {
		b.keep(name, []item{it}, "", make)
	}
}

func (b *builder) table() Table {
	slices.SortFunc(b.chains, func(x, y *chain) int { return cmp.Compare(x.name, y.name) })
	t := Table{Name: b.name, Chains: make([]Chain, len(b.chains))}
	for i, c := range b.chains {
		t.Chains[i] = Chain{Name: c.name, Text: c.text}
	}
	return t
}

// A chain is a Chain in the making.
type chain struct {
	name  string
	text  []byte
	slots int // hash slots that the rules so far use
}

// rule appends one rule, given in parts that are joined by spaces; empty parts are left out.
func (c *chain) rule(parts ...string) {
	c.text = append(c.text, "-A "...)
	c.text = append(c.text, c.name...)
	for _, p := range parts {
		if p != "" {
			c.text = append(c.text, ' ')
			c.text = append(c.text, p...)
		}
	}
	c.text = append(c.text, '\n')
}
