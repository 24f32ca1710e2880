package explain

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"sallyport/gateway/route"
	"sallyport/watcher/model"
)

// TestHostThatDecides holds what is told of hosts to the table that serves: the host whose routes decide is that of the
// route which takes the request, and where none does, each route that would is another host's.
func TestHostThatDecides(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	hosts := []string{"", "*.example.com", "a.example.com", "*.a.example.com", "example.com", "*.com", "localhost"}
	asked := []string{"a.example.com", "b.example.com", "b.a.example.com", "example.com", "example.org", "localhost", "com", "192.0.2.1"}
	paths := []string{"/", "/a", "/a/b", "/ab", "/a/"}
	taken, missed := 0, 0
	for range 500 {
		s := randomRoutes(r, hosts, paths)
		e := &explainer{s: s, table: route.Compile(s)}
		for _, host := range asked {
			path := paths[r.IntN(len(paths))]
			name, routes := e.deciding(host)
			m := e.table.Match([]byte(host), []byte(path))
			switch alone := taker(routes, path); {
			case m == nil && alone != nil:
				t.Fatalf("no route takes http://%s%s, but %+v of %q, which decides", host, path, alone, name)
			case m == nil:
				missed++
			case alone == nil || m.Route != alone || m.Host != name:
				t.Fatalf("%+v takes http://%s%s, but of %q, which decides, %+v", m.Route, host, path, name, alone)
			default:
				taken++
			}
		}
	}
	if taken < 500 || missed < 500 {
		t.Errorf("%d requests were taken, %d missed: the test is one-sided", taken, missed)
	}
}

// randomRoutes are some routes, ordered and without repeats, as in a snapshot.
func randomRoutes(r *rand.Rand, hosts, paths []string) *model.Snapshot {
	s := &model.Snapshot{}
	for _, host := range hosts {
		for range r.IntN(4) {
			m := model.Route{Ref: model.ObjectRef{Kind: "Ingress", Name: fmt.Sprint("i", len(s.Routes))}, Host: host, Match: model.MatchDefault}
			if r.IntN(4) > 0 {
				m.Path, m.Match = paths[r.IntN(len(paths))], []model.PathMatch{model.MatchExact, model.MatchPrefix}[r.IntN(2)]
			}
			if m.Match == model.MatchPrefix && m.Path != "/" {
				m.Path = strings.TrimSuffix(m.Path, "/")
			}
			s.Routes = append(s.Routes, m)
		}
	}
	slices.SortFunc(s.Routes, model.Route.Compare)
	s.Routes = slices.CompactFunc(s.Routes, func(a, b model.Route) bool { return a.Host == b.Host && a.Path == b.Path && a.Match == b.Match })
	return s
}
