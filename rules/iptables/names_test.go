package iptables

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// FuzzNames holds that nothing that the cluster may name gets out of its rule: but for comments, and for digests in the names
// of chains and sets, the rules are those of other names.
func FuzzNames(f *testing.F) {
	f.Add("default", "web", "http", "node-1")
	f.Add("a\nCOMMIT\n*filter\n-F", "b", "", "x\n-F")
	f.Add("a", "b -j ACCEPT", "c\"", "")
	f.Add("--comment", "-j", "\x00", "-j")
	f.Add("-test", "web", "", "node")
	f.Add(strings.Repeat("a", 300), "b", "c", strings.Repeat("n", 300))
	f.Fuzz(func(t *testing.T, namespace, name, port, node string) {
		for _, family := range plan.Families {
			got, want := anonymous(renamed(family, namespace, name, port, node)), anonymous(renamed(family, "n", "s", "p", "k"))
			if !slices.Equal(got, want) {
				t.Errorf("%v: got  %q\nwant %q", family, got, want)
			}
		}
	})
}

// renamed renders the Services that have most rules, under other names.
func renamed(f plan.Family, namespace, name, port, node string) Ruleset {
	s := features()
	for i := range s.Services {
		svc := &s.Services[i]
		svc.Ref.Namespace, svc.Ref.Name = namespace, svc.Ref.Name+name
		svc.SourceRanges = &model.SourceRanges{Prefixes: prefixes("192.0.2.0/25 2001:db8:9::/64")}
		for k := range svc.Ports {
			svc.Ports[k].Name = port
			for d := range svc.Ports[k].Destinations {
				svc.Ports[k].Destinations[d].Node = node
			}
		}
	}
	return Render(plan.New(s, f, groupOptions()))
}

var (
	digested  = regexp.MustCompile(`SALLY-((SP|EP|TO|SRC|LIM)-)?([a-z2-7]{25}|[a-z2-7]{13})`)
	commented = regexp.MustCompile(` -m comment --comment [a-z0-9./:-]+ `)
)

// anonymous are the lines of rules without what comes of names, ordered.
func anonymous(rs Ruleset) []string {
	var lines []string
	for _, s := range rs.Sets {
		lines = append(lines, digested.ReplaceAllString(s.Name, "X"))
	}
	for _, t := range rs.Tables {
		for line := range strings.Lines(string(t.Change(t.Chains, nil, nil))) {
			lines = append(lines, commented.ReplaceAllString(digested.ReplaceAllString(line, "${1}X"), " "))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestComment(t *testing.T) {
	for _, tt := range []struct{ namespace, name, port, want string }{
		{"default", "web", "", "-m comment --comment default/web"},
		{"default", "web", "http", "-m comment --comment default/web:http"},
		{"default", "we b", "", ""},
		{"default", "web\n", "", ""},
		{"default", "we\"b", "", ""},
		{"default", "web", "http\x00", ""},
		{"-test", "web", "", ""}, // iptables-restore would read an option
		{"", "", "", "-m comment --comment /"},
		{strings.Repeat("n", 200), strings.Repeat("s", 63), "", ""},
	} {
		if got := comment(model.ObjectRef{Namespace: tt.namespace, Name: tt.name}, tt.port); got != tt.want {
			t.Errorf("%q/%q:%q: got %q, want %q", tt.namespace, tt.name, tt.port, got, tt.want)
		}
	}
}
