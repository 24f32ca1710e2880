package route

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"sallyport/watcher/model"
)

// table compiles routes written as "host path match"; "-" stands for an empty host or path.
func table(t testing.TB, routes ...string) *Table {
	t.Helper()
	s := new(model.Snapshot)
	for _, line := range routes {
		f := strings.Fields(line)
		if len(f) != 3 {
			t.Fatalf("route %q: want host, path and match", line)
		}
		s.Routes = append(s.Routes, model.Route{
			Host: strings.Trim(f[0], "-"), Path: strings.Trim(f[1], "-"), Match: model.PathMatch(f[2])})
	}
	return Compile(s)
}

// name writes a route as table reads it.
func name(r *Route) string {
	if r == nil {
		return "none"
	}
	return fmt.Sprintf("%s %s %s", cmp.Or(r.Host, "-"), cmp.Or(r.Path, "-"), r.Match)
}

// The examples of https://kubernetes.io/docs/concepts/services-networking/ingress/#examples
func TestKubernetesPathExamples(t *testing.T) {
	for _, tt := range []struct {
		routes []string
		path   string
		want   string
	}{
		{[]string{"- / Prefix"}, "/any/path", "- / Prefix"},
		{[]string{"- /foo Exact"}, "/foo", "- /foo Exact"},
		{[]string{"- /foo Exact"}, "/bar", "none"},
		{[]string{"- /foo Exact"}, "/foo/", "none"},
		{[]string{"- /foo/ Exact"}, "/foo", "none"},
		{[]string{"- /foo Prefix"}, "/foo", "- /foo Prefix"},
		{[]string{"- /foo Prefix"}, "/foo/", "- /foo Prefix"},
		{[]string{"- /foo/ Prefix"}, "/foo", "- /foo/ Prefix"},
		{[]string{"- /foo/ Prefix"}, "/foo/", "- /foo/ Prefix"},
		{[]string{"- /aaa/bb Prefix"}, "/aaa/bbb", "none"},
		{[]string{"- /aaa/bbb Prefix"}, "/aaa/bbb", "- /aaa/bbb Prefix"},
		{[]string{"- /aaa/bbb/ Prefix"}, "/aaa/bbb", "- /aaa/bbb/ Prefix"},
		{[]string{"- /aaa/bbb Prefix"}, "/aaa/bbb/", "- /aaa/bbb Prefix"},
		{[]string{"- /aaa/bbb Prefix"}, "/aaa/bbb/ccc", "- /aaa/bbb Prefix"},
		{[]string{"- /aaa/bbb Prefix"}, "/aaa/bbbxyz", "none"},
		{[]string{"- / Prefix", "- /aaa Prefix"}, "/aaa/ccc", "- /aaa Prefix"},
		{[]string{"- / Prefix", "- /aaa Prefix", "- /aaa/bbb Prefix"}, "/aaa/bbb", "- /aaa/bbb Prefix"},
		{[]string{"- / Prefix", "- /aaa Prefix", "- /aaa/bbb Prefix"}, "/ccc", "- / Prefix"},
		{[]string{"- /aaa Prefix"}, "/ccc", "none"},
		{[]string{"- /aaa Prefix", "- - Default"}, "/ccc", "- - Default"},
		{[]string{"- /foo Prefix", "- /foo Exact"}, "/foo", "- /foo Exact"},
	} {
		t.Run(strings.Join(tt.routes, ", ")+" on "+tt.path, func(t *testing.T) {
			if got := name(table(t, tt.routes...).Match([]byte("x"), []byte(tt.path))); got != tt.want {
				t.Errorf("Match(%q) = %s, want %s", tt.path, got, tt.want)
			}
		})
	}
}

func TestHostPrecedence(t *testing.T) {
	tab := table(t,
		"foo.bar.com /a Prefix",
		"*.bar.com / Prefix",
		"*.bar.com /exact Exact",
		"default.com /a Prefix",
		"default.com - Default",
		"- /any Prefix",
		"- - Default")
	for _, tt := range []struct{ host, path, want string }{
		{"foo.bar.com", "/a/b", "foo.bar.com /a Prefix"},
		{"foo.bar.com", "/b", "none"}, // falls through neither to the wildcard nor to the default
		{"baz.bar.com", "/a", "*.bar.com / Prefix"},
		{"baz.bar.com", "/exact", "*.bar.com /exact Exact"},
		{"baz.foo.bar.com", "/any", "- /any Prefix"}, // a wildcard is one label
		{"bar.com", "/any", "- /any Prefix"},         // and needs one
		{"default.com", "/b", "default.com - Default"},
		{"other.com", "/any/b", "- /any Prefix"},
		{"other.com", "/b", "- - Default"},
		{"", "/b", "- - Default"},
		{".bar.com", "/b", "- - Default"},
	} {
		if got := name(tab.Match([]byte(tt.host), []byte(tt.path))); got != tt.want {
			t.Errorf("Match(%q, %q) = %s, want %s", tt.host, tt.path, got, tt.want)
		}
	}
}

func TestCompileLeavesOutWhatCannotMatch(t *testing.T) {
	tab := table(t, "bad_%host / Prefix", "x.com /%zz Prefix", "x.com no-slash Exact", "x.com /ok Weird", "x.com /%7Euser Prefix")
	if got := name(tab.Match([]byte("x.com"), []byte("/~user/a"))); got != "x.com /%7Euser Prefix" {
		t.Errorf("an escaped path of a route does not match the normalised path of a request: got %s", got)
	}
	if got := name(tab.Match([]byte("x.com"), []byte("/ok"))); got != "none" {
		t.Errorf("a route of unknown match gave %s, want none", got)
	}
	if got := name(new(Table).Match([]byte("x.com"), []byte("/"))); got != "none" {
		t.Errorf("the empty table gave %s, want none", got)
	}
}

func TestOldestOfEqualRoutesWins(t *testing.T) {
	s := &model.Snapshot{Routes: []model.Route{
		{Ref: model.ObjectRef{Name: "first"}, Path: "/a", Match: model.MatchPrefix},
		{Ref: model.ObjectRef{Name: "second"}, Path: "/a/", Match: model.MatchPrefix},
	}}
	r := Compile(s).Match(nil, []byte("/a"))
	if r == nil || r.Ref.Name != "first" || r.Index != 0 {
		t.Errorf("Match = %+v, want the first route", r)
	}
}

// naive finds the route by looking at all of them, straight from the words of the Ingress API.
func naive(routes []model.Route, host, path string) *model.Route {
	hostRank := func(r model.Route) int {
		_, parent, _ := strings.Cut(host, ".")
		switch {
		case r.Host == host && host != "":
			return 3
		case strings.HasPrefix(r.Host, "*.") && r.Host[2:] == parent && parent != "" && !strings.HasPrefix(host, "."):
			return 2
		case r.Host == "":
			return 1
		}
		return 0
	}
	best := 0
	for _, r := range routes {
		best = max(best, hostRank(r))
	}
	var found *model.Route
	length := -1
	for i, r := range routes {
		n := pathRank(r, path)
		if best > 0 && hostRank(r) == best && n > length {
			found, length = &routes[i], n
		}
	}
	return found
}

// pathRank is -1 for no match, and otherwise grows with precedence.
func pathRank(r model.Route, path string) int {
	switch r.Match {
	case model.MatchExact:
		if r.Path == path {
			return 1 << 20
		}
	case model.MatchPrefix:
		p := strings.TrimSuffix(r.Path, "/")
		if path == p || strings.HasPrefix(path, p+"/") {
			return 1 + len(p)
		}
	case model.MatchDefault:
		return 0
	}
	return -1
}

func TestMatchEqualsNaiveMatcher(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[rng.IntN(len(from))] }
	hostName := func() string { return pick("", "a.com", "b.com", "x.a.com", "y.x.a.com", "*.a.com", "*.x.a.com") }
	path := func() string {
		var b strings.Builder
		for range rng.IntN(5) {
			b.WriteString("/" + pick("a", "b", "ab", "", "a%2Fb"))
		}
		b.WriteString(pick("", "/"))
		return cmp.Or(b.String(), "/")
	}
	for range 2000 {
		s := new(model.Snapshot)
		seen := map[string]bool{}
		for range rng.IntN(12) {
			r := model.Route{Host: hostName(), Path: path(),
				Match: model.PathMatch(pick("Exact", "Prefix", "Prefix", "Default"))}
			key := fmt.Sprint(r.Host, " ", strings.TrimSuffix(r.Path, "/"), " ", r.Match)
			if r.Match == model.MatchDefault {
				r.Path, key = "", r.Host+" default"
			}
			if !seen[key] || r.Match == model.MatchExact {
				s.Routes = append(s.Routes, r)
			}
			seen[key] = true
		}
		slices.SortStableFunc(s.Routes, model.Route.Compare)
		tab := Compile(s)
		for range 20 {
			h, p := strings.TrimPrefix(hostName(), "*"), path()
			want := naive(s.Routes, h, p)
			got := tab.Match([]byte(h), []byte(p))
			if (got == nil) != (want == nil) || got != nil && got.Compare(*want) != 0 {
				t.Fatalf("Match(%q, %q) = %v, want %v\nroutes %+v", h, p, got, want, s.Routes)
			}
		}
	}
}

// many returns a snapshot of hosts x paths routes and a request for one in the middle.
func many(hosts, paths int) (s *model.Snapshot, host, path []byte) {
	s = new(model.Snapshot)
	for h := range hosts {
		for p := range paths {
			s.Routes = append(s.Routes, model.Route{
				Host: fmt.Sprintf("host-%d.example.com", h), Path: fmt.Sprintf("/api/v1/path-%d", p), Match: model.MatchPrefix})
		}
	}
	return s, fmt.Appendf(nil, "host-%d.example.com", hosts/2), fmt.Appendf(nil, "/api/v1/path-%d/items/42", paths/2)
}

func TestMatchDoesNotAllocate(t *testing.T) {
	s, host, path := many(10, 10)
	s.Routes = append(s.Routes, model.Route{Host: "*.wild.com", Path: "/", Match: model.MatchPrefix})
	tab := Compile(s)
	if tab.Match(host, path) == nil {
		t.Fatalf("Match(%q, %q) = nil", host, path)
	}
	wild := []byte("a.wild.com")
	if n := testing.AllocsPerRun(100, func() { tab.Match(host, path); tab.Match(wild, path) }); n != 0 {
		t.Errorf("Match allocates %v times, want 0", n)
	}
}

func BenchmarkMatch(b *testing.B) {
	for _, size := range []struct{ hosts, paths int }{{1, 1}, {100, 10}, {10_000, 10}, {1, 100_000}} {
		b.Run(fmt.Sprintf("hosts=%d/paths=%d", size.hosts, size.paths), func(b *testing.B) {
			s, _, _ := many(size.hosts, size.paths)
			tab := Compile(s)
			const requests = 4096 // at random, or one pair would stay in the processor's cache
			rng := rand.New(rand.NewPCG(3, 4))
			host, path := make([][]byte, requests), make([][]byte, requests)
			for i := range requests {
				r := s.Routes[rng.IntN(len(s.Routes))]
				host[i], path[i] = []byte(r.Host), []byte(r.Path+"/items/42")
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if tab.Match(host[i%requests], path[i%requests]) == nil {
					b.Fatal("no route")
				}
			}
		})
	}
}

func BenchmarkCompile100k(b *testing.B) {
	s, _, _ := many(10_000, 10)
	for b.Loop() {
		Compile(s)
	}
}
