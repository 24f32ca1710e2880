package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"sallyport/watcher/model"
)

// clients tells how a Service treats those who connect to it, and says why they are kept out, or is empty.
func (e *explainer) clients(s *model.Service, at entry) (keptOut string) {
	if at.restricted && s.SourceRanges != nil {
		e.step("clients", sourcesText(s.SourceRanges))
		keptOut = whyKeptOut(s, at)
	}
	e.treatment(s)
	return keptOut
}

// whyKeptOut says why source ranges keep the client out, or, if it is not given, everyone.
func whyKeptOut(s *model.Service, at entry) string {
	ranges := s.SourceRanges.Prefixes
	open := func(p netip.Prefix) bool { return !at.to.IsValid() || p.Addr().Is4() == at.to.Addr().Is4() }
	switch {
	case !slices.ContainsFunc(ranges, open):
		return fmt.Sprintf("%v lets nobody connect to that address by its source ranges: the connection is dropped", s.Ref)
	case at.from.IsValid() && !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(at.from) }):
		return fmt.Sprintf("%v is in none of the source ranges of %v: the connection is dropped", at.from, s.Ref)
	}
	return ""
}

// sourcesText shows the first of many source ranges.
func sourcesText(r *model.SourceRanges) string {
	var all []string
	for _, p := range r.Prefixes {
		all = append(all, p.String())
	}
	return "only from " + list([]string{few(all)}, "nowhere")
}

// treatment tells of affinity, limits and the PROXY protocol.
func (e *explainer) treatment(s *model.Service) {
	switch a := s.Affinity; {
	case a == nil:
	case a.Exact:
		e.step("affinity", fmt.Sprintf("a client keeps its endpoint for %v after its last new connection", a.Timeout))
	default:
		e.step("affinity", "the address of the client decides, as long as the destinations stay")
	}
	if l := s.Limits; l != nil {
		for _, v := range []struct {
			most uint32
			what string
		}{{l.NewPerSecond, "new connections of a client in a second"}, {l.PerClient, "connections of a client at one time"}, {l.Total, "connections at one time"}} {
			if v.most != 0 {
				e.step("limit", fmt.Sprintf("%d %s: more are dropped", v.most, v.what))
			}
		}
	}
	if s.ProxyProtocol != 0 {
		e.step("PROXY", fmt.Sprintf("endpoints are told the address of the client, by PROXY protocol v%d", s.ProxyProtocol))
	}
}
