package translate

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"sallyport/watcher/model"
)

// An ingress is one Ingress being translated.
type ingress struct {
	*translator
	*networkingv1.Ingress
	self     model.ObjectRef
	secure   []string // the hosts of spec.tls, as in Route.Host, those with the default certificate included; ordered
	redirect bool     // requests in clear for those are redirected to https
	made     *ingressRules
}

// ingresses adds the routes of the cluster's Ingresses that are ours to t.routes.
func (t *translator) ingresses() {
	t.explainClasses()
	classes := classesOf(t.in)
	t.out.Statuses = slices.Grow(t.out.Statuses, len(t.in.Ingresses))
	for _, ing := range t.in.Ingresses { // in any order: resolveRoutes orders the routes
		g := &ingress{translator: t, Ingress: ing, self: t.ref("Ingress", ing)}
		ours := classes.serve(ing)
		if ours {
			before := len(t.out.Problems)
			g.translate()
			t.out.Problems = append(t.out.Problems[:before], model.FirstProblems(t.out.Problems[before:])...)
		}
		g.status(ours)
	}
	t.memory.forgetIngresses()
}

func (g *ingress) translate() {
	g.tls()
	g.redirect = g.redirects()
	r := g.memory.rules(g)
	g.routes = append(g.routes, r.routes...)
	g.out.Problems = append(g.out.Problems, r.problems...)
}

// rules translates spec.rules and spec.defaultBackend.
func (g *ingress) rules() *ingressRules {
	before := len(g.out.Problems)
	g.made = &ingressRules{secure: g.secure}
	g.readRules()
	g.made.problems = append(g.made.problems, model.FirstProblems(g.out.Problems[before:])...)
	g.out.Problems = g.out.Problems[:before]
	return g.made
}

func (g *ingress) readRules() {
	hosts := []string{""} // that get the default backend: every other host, and those of the rules
	for i := range g.Spec.Rules {
		if host, ok := g.rule(i); ok {
			hosts = append(hosts, host)
		}
	}
	if g.Spec.DefaultBackend == nil {
		return
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	backends := g.backend(g.Spec.DefaultBackend, "spec.defaultBackend")
	for _, host := range hosts {
		g.route(model.Route{Host: host, Match: model.MatchDefault, Backends: backends}, "spec.defaultBackend")
	}
}

// rule adds the routes of spec.rules[i], and returns its host. ok is false if the host is unusable.
func (g *ingress) rule(i int) (host string, ok bool) {
	r := &g.Spec.Rules[i]
	field := indexed("spec.rules", i, "")
	host, why := normalizeHost(r.Host)
	if why != "" {
		g.complain(field+".host", model.ReasonInvalidField, "%q %s: the rule is not served", r.Host, why)
		return "", false
	}
	if r.HTTP == nil && g.Spec.DefaultBackend == nil {
		g.complain(field+".http", model.ReasonInvalidField, "the rule has no paths and the Ingress no defaultBackend: add either")
	}
	if r.HTTP != nil {
		for j := range r.HTTP.Paths {
			g.path(host, &r.HTTP.Paths[j], indexed(field+".http.paths", j, ""))
		}
	}
	return host, true
}

// path adds the route of one path.
func (g *ingress) path(host string, p *networkingv1.HTTPIngressPath, field string) {
	match, ok := g.pathType(p, field)
	if !ok {
		return
	}
	path := p.Path
	if path == "" && match == model.MatchPrefix && *p.PathType == networkingv1.PathTypeImplementationSpecific {
		path = "/"
	}
	path, why := normalizePath(path)
	if why != "" {
		g.complain(field+".path", model.ReasonInvalidField, "%q %s: the path is not served", p.Path, why)
		return
	}
	if match == model.MatchPrefix {
		path = trimSlash(path)
	}
	g.route(model.Route{Host: host, Path: path, Match: match, Backends: g.backend(&p.Backend, field+".backend")}, field)
}

// pathType reads pathType; ImplementationSpecific is Prefix here.
func (g *ingress) pathType(p *networkingv1.HTTPIngressPath, field string) (_ model.PathMatch, ok bool) {
	switch t := value(p.PathType, ""); t {
	case networkingv1.PathTypeExact:
		return model.MatchExact, true
	case networkingv1.PathTypePrefix, networkingv1.PathTypeImplementationSpecific:
		return model.MatchPrefix, true
	default:
		g.complain(field+".pathType", model.ReasonInvalidField, "%q is not a path type: use Exact, Prefix or ImplementationSpecific", t)
		return "", false
	}
}

func (g *ingress) route(r model.Route, field string) {
	r.Ref, r.Created, r.RedirectHTTPS = g.self, created(g.Ingress), g.redirect && g.isSecure(r.Host)
	g.made.routes = append(g.made.routes, candidate{r, field})
}

func (g *ingress) complain(field string, r model.Reason, format string, args ...any) {
	g.problem(g.self, field, r, format, args...)
}
