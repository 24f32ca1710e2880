package translate

import (
	"fmt"
	"slices"

	"sallyport/watcher/model"
)

// A candidate is a route and the field that asks for it.
type candidate struct {
	model.Route
	field string
}

// resolveRoutes orders the routes and keeps the oldest of those that want the same requests. Within one Ingress the
// first in its list stays.
func resolveRoutes(s *model.Snapshot, all []candidate) {
	slices.SortStableFunc(all, func(a, b candidate) int { return a.Compare(b.Route) })
	s.Routes = make([]model.Route, 0, len(all))
	for _, c := range all {
		if n := len(s.Routes); n > 0 && sameRequests(&s.Routes[n-1], &c.Route) {
			s.Problems = append(s.Problems, model.Problem{Object: c.Ref, Field: c.field, Reason: model.ReasonDuplicateRoute,
				Message: duplicate(&c.Route, s.Routes[n-1].Ref)})
			continue
		}
		s.Routes = append(s.Routes, c.Route)
	}
}

func sameRequests(a, b *model.Route) bool {
	return a.Host == b.Host && a.Path == b.Path && a.Match == b.Match
}

// duplicate says which route is lost, and to whom.
func duplicate(r *model.Route, winner model.ObjectRef) string {
	host := r.Host
	if host == "" {
		host = "any host"
	}
	what := fmt.Sprintf("%s %s of %s", r.Match, r.Path, host)
	if r.Match == model.MatchDefault {
		what = "the default of " + host
	}
	if winner == r.Ref {
		return what + " stands in this Ingress twice: the first is served"
	}
	return fmt.Sprintf("%s is taken by %v, which comes first by age and name: change either", what, winner)
}
