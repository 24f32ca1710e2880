package nftables

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"

	"sallyport/rules/plan"
)

// Name is the name of our tables, one of family ip and one of ip6.
const Name = "sallyport"

// A Table is what Sallyport wants in the kernel for one family.
type Table struct {
	Family plan.Family
	Sets   []Set   // the same ones always, whatever the plan
	Chains []Chain // ordered by name
}

// A Set is a set or map of nftables.
type Set struct {
	Name string
	Map  bool
	Spec string // what its declaration says between the braces
	// Dynamic says that packets fill it. Its elements are the state of clients, and outlive every change of ours.
	Dynamic  bool
	Elements []Element // in the order of the plan
}

// An Element is one entry of a Set, as nft spells it.
type Element struct {
	Key, Value string // Value is empty in a set that is no map
	Comment    string // may be empty
}

// A Chain is a chain with its rules.
type Chain struct {
	Name  string
	Hook  string // what makes it a base chain, or empty
	Rules []string
}

// elementsPerCommand bounds the length of a line: nft quotes the whole of one that fails.
const elementsPerCommand = 200

// WriteTo prints the commands that make the table from nothing, as nft -f reads them.
func (t Table) WriteTo(w io.Writer) (int64, error) {
	s := script{table: t.name()}
	s.declare(t)
	for _, set := range t.Sets {
		s.add(set, set.Elements)
	}
	n, err := w.Write(s.Bytes())
	return int64(n), err
}

// replacement are the commands that put the table in the place of one that is there, or of none. All but the elements of
// dynamic sets is written anew.
func (t Table) replacement() []byte {
	s := script{table: t.name()}
	s.declare(t)
	for _, set := range t.Sets {
		if !set.Dynamic {
			s.command("flush", set, "")
			s.add(set, set.Elements)
		}
	}
	return s.Bytes()
}

// since are the commands that lead from old to t; none if they are equal. Chains that t has no more stay, for removal.
func (t Table) since(old Table) []byte {
	s := script{table: t.name()}
	for _, c := range t.Chains {
		i, found := old.chain(c.Name)
		if !found {
			s.chain(c)
		}
		if found && !slices.Equal(old.Chains[i].Rules, c.Rules) {
			fmt.Fprintf(&s, "flush chain %s %s\n", s.table, c.Name)
		} else if found {
			continue
		}
		s.rules(c)
	}
	for i, set := range t.Sets {
		gone, added := differences(old.Sets[i].Elements, set.Elements)
		s.delete(set, gone)
		s.add(set, added)
	}
	return s.Bytes()
}

// removal are the commands that remove the chains of old that t has no more. They may lead to each other.
func (t Table) removal(old Table) []byte {
	s := script{table: t.name()}
	for _, verb := range [...]string{"flush", "delete"} {
		for _, c := range old.Chains {
			if _, found := t.chain(c.Name); !found {
				fmt.Fprintf(&s, "%s chain %s %s\n", verb, s.table, c.Name)
			}
		}
	}
	return s.Bytes()
}

// with are the chains of t, and those of old that t has no more.
func (t Table) with(old Table) Table {
	t.Chains = slices.Clone(t.Chains)
	for _, c := range old.Chains {
		if i, found := t.chain(c.Name); !found {
			t.Chains = slices.Insert(t.Chains, i, c)
		}
	}
	return t
}

// chain is the index of one, or where it would be.
func (t Table) chain(name string) (i int, found bool) {
	return slices.BinarySearchFunc(t.Chains, name, func(c Chain, name string) int { return cmp.Compare(c.Name, name) })
}

// Elements counts those of all sets.
func (t Table) Elements() (n int) {
	for _, s := range t.Sets {
		n += len(s.Elements)
	}
	return n
}

// name is the table's, with its family.
func (t Table) name() string { return wordsOf(t.Family).ip + " " + Name }

// differences are the elements to delete and those to add. What changed little differs in the middle only.
func differences(old, next []Element) (gone, added []Element) {
	for len(old) > 0 && len(next) > 0 && old[0] == next[0] {
		old, next = old[1:], next[1:]
	}
	for len(old) > 0 && len(next) > 0 && old[len(old)-1] == next[len(next)-1] {
		old, next = old[:len(old)-1], next[:len(next)-1]
	}
	if len(old) == 0 || len(next) == 0 {
		return old, next
	}
	was := make(map[Element]bool, len(old))
	for _, e := range old {
		was[e] = true
	}
	for _, e := range next {
		if was[e] {
			delete(was, e)
		} else {
			added = append(added, e)
		}
	}
	for _, e := range old {
		if was[e] {
			gone = append(gone, e)
		}
	}
	return gone, added
}

// A script is the input of nft -f: one transaction.
type script struct {
	bytes.Buffer
	table string
}

// declare makes the table, its sets and its chains. Sets and base chains that are there already have to have the same
// properties; rules that are there go.
func (s *script) declare(t Table) {
	fmt.Fprintf(s, "add table %s\n", s.table)
	for _, set := range t.Sets {
		s.command("add", set, " { "+set.Spec+" }")
	}
	for _, c := range t.Chains {
		s.chain(c)
	}
	fmt.Fprintf(s, "flush table %s\n", s.table)
	for _, c := range t.Chains {
		s.rules(c)
	}
}

// chain makes an empty chain, unless there is one.
func (s *script) chain(c Chain) {
	fmt.Fprintf(s, "add chain %s %s", s.table, c.Name)
	if c.Hook != "" {
		fmt.Fprintf(s, " { %s }", c.Hook)
	}
	s.WriteByte('\n')
}

func (s *script) rules(c Chain) {
	for _, rule := range c.Rules {
		fmt.Fprintf(s, "add rule %s %s %s\n", s.table, c.Name, rule)
	}
}

// command writes one about a set as a whole.
func (s *script) command(verb string, set Set, rest string) {
	kind := "set"
	if set.Map {
		kind = "map"
	}
	fmt.Fprintf(s, "%s %s %s %s%s\n", verb, kind, s.table, set.Name, rest)
}

func (s *script) add(set Set, elements []Element) {
	s.elements("add", set, elements, func(e Element) {
		if e.Comment != "" {
			s.WriteString(` comment "` + e.Comment + `"`)
		}
		if set.Map {
			s.WriteString(" : " + e.Value)
		}
	})
}

func (s *script) delete(set Set, elements []Element) {
	s.elements("delete", set, elements, func(Element) {})
}

func (s *script) elements(verb string, set Set, elements []Element, rest func(Element)) {
	for part := range slices.Chunk(elements, elementsPerCommand) {
		fmt.Fprintf(s, "%s element %s %s { ", verb, s.table, set.Name)
		for i, e := range part {
			if i > 0 {
				s.WriteString(", ")
			}
			s.WriteString(e.Key)
			rest(e)
		}
		s.WriteString(" }\n")
	}
}
