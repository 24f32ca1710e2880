package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"

	"sallyport/gateway/route"
	"sallyport/watcher/model"
)

// maxMisses is how many routes are shown that nearly took a request.
const maxMisses = 4

// nearMisses are the routes of the deciding host that look nearer to the path than the one that takes it, if any does, and
// why they do not match.
func (e *explainer) nearMisses(r request, taken *model.Route) []string {
	_, routes := e.deciding(r.host)
	var nearer []model.Route
	for _, m := range routes {
		if why := miss(&m, r.path); why != "" && (taken == nil || len(m.Path) > len(taken.Path) || m.Path == taken.Path && m.Match != taken.Match) {
			nearer = append(nearer, m)
		}
	}
	slices.SortStableFunc(nearer, func(a, b model.Route) int { return cmp.Compare(len(b.Path), len(a.Path)) })
	var out []string
	for i := range min(len(nearer), maxMisses) {
		m := &nearer[i]
		out = append(out, fmt.Sprintf("%s of %v: %s", routeName(m), m.Ref, miss(m, r.path)))
	}
	return out
}

// miss says why a route does not match a path that is like its own, or is empty if it does, or is not like it.
func miss(m *model.Route, path string) string {
	stem := strings.TrimSuffix(m.Path, "/")
	switch {
	case m.Match == model.MatchDefault || path == m.Path:
		return ""
	case m.Match == model.MatchExact && strings.TrimSuffix(path, "/") == stem && stem != "":
		return "Exact tells the slash at the end"
	case m.Match == model.MatchExact && stem != "" && strings.HasPrefix(path, stem+"/"):
		return "Exact matches " + m.Path + " alone, and nothing below it"
	case m.Match == model.MatchPrefix && strings.HasPrefix(path, stem) && !strings.HasPrefix(path, stem+"/") && path != stem:
		return "Prefix matches whole elements: " + stem + " and " + stem + "/..."
	case !strings.HasPrefix(path, stem) && strings.EqualFold(path[:min(len(path), len(stem))], stem):
		return "upper and lower case differ"
	}
	return ""
}

// noRoute says what is missing where no route takes the request.
func (e *explainer) noRoute(r request) {
	name, routes := e.deciding(r.host)
	if len(routes) == 0 {
		e.noHost(r)
		return
	}
	if name == "" {
		name = "any host"
	}
	e.conclude(None, fmt.Sprintf("the request is answered 404: no route of %s takes the path %s", name, r.path))
	misses := e.nearMisses(r, nil)
	for _, m := range misses {
		e.step("not", m)
	}
	if len(misses) == 0 {
		e.step("not", few(pathsOf(routes)))
	}
	e.hint("add the path to an Ingress of the host, or a path / of type Prefix, or a defaultBackend")
	e.fallThrough(r)
}

// pathsOf are the paths that there are.
func pathsOf(routes []model.Route) []string {
	var out []string
	for i := range routes {
		out = append(out, routeName(&routes[i]))
	}
	return out
}

// fallThrough tells of a less specific host whose routes would take the request, as other gateways would have it.
func (e *explainer) fallThrough(r request) {
	decides, _ := e.deciding(r.host)
	_, parent, _ := strings.Cut(r.host, ".")
	for _, name := range []string{"*." + parent, ""} {
		if name == decides {
			continue
		}
		if m := taker(e.routesOf(name), r.path); m != nil {
			e.hint(fmt.Sprintf("%s would take it, but a host that an Ingress names is left to its own routes", routeName(m)))
			return
		}
	}
}

// taker is the one of a host's routes that takes the path, or nil.
func taker(routes []model.Route, path string) *model.Route {
	alone := slices.Clone(routes)
	for i := range alone {
		alone[i].Host = ""
	}
	m := route.Compile(&model.Snapshot{Routes: alone}).Match(nil, []byte(path))
	if m == nil {
		return nil
	}
	return &routes[m.Index]
}

// noHost says what is missing where no Ingress names the host.
func (e *explainer) noHost(r request) {
	e.conclude(None, fmt.Sprintf("the request is answered 404: no Ingress served here has the host %s", r.host))
	if near := e.nearHosts(r.host); len(near) > 0 {
		e.hint("hosts like it: " + few(near))
	}
	labels := strings.Count(r.host, ".")
	if _, rest, ok := strings.Cut(r.host, "."); ok && labels > 1 {
		_, rest, _ = strings.Cut(rest, ".")
		if wildcard := "*." + rest; len(e.routesOf(wildcard)) > 0 {
			e.hint(wildcard + " is for one label only (networking/v1 IngressRule.host): add *." + r.host[strings.IndexByte(r.host, '.')+1:])
		}
	}
	if _, ok := isIP(r.host); !ok {
		e.hint("if an Ingress has the host, it is of another class: spec.ingressClassName must name an IngressClass of controller sallyport.io/ingress: " +
			"kubectl get ingress -A; kubectl get ingressclass")
	}
}

// mentions says whether a message shows the host as what an Ingress says, which is in quotes.
func mentions(message, host string) bool {
	return strings.Contains(strings.ToLower(message), strconv.Quote(host))
}

// nearHosts are the hosts that differ by "www." or by no more than two bytes.
func (e *explainer) nearHosts(host string) []string {
	var out []string
	for i := range e.s.Routes {
		h := e.s.Routes[i].Host
		if h == "" || len(out) > 0 && out[len(out)-1] == h {
			continue
		}
		if strings.TrimPrefix(h, "www.") == strings.TrimPrefix(host, "www.") || isSlip(h, host) {
			out = append(out, h)
		}
	}
	return out
}

// isSlip says whether b is a with two characters at the most inserted, deleted or replaced.
func isSlip(a, b string) bool {
	d := len(a) - len(b)
	return d >= -2 && d <= 2 && levenshtein.ComputeDistance(a, b) <= 2
}
