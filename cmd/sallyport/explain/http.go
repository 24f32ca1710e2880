package explain

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sallyport/gateway/route"
	"sallyport/watcher/model"
)

// acmeChallenges are never redirected by the gateway (RFC 8555 section 8.3).
const acmeChallenges = "/.well-known/acme-challenge/"

// explain says what becomes of the request: which listener has it, what it is shown, and where the route leads.
func (r request) explain(e *explainer) error {
	if r.bad != "" {
		e.conclude(Refused, "the request is answered 400: "+r.bad)
		return nil
	}
	if e.isNotL7(r) {
		return nil
	}
	if addr, ok := isIP(r.host); ok {
		e.hint(fmt.Sprintf("the host is the address %v: a route for another host needs that name in the request (curl -H 'Host: ...')", addr))
	}
	if r.scheme == "https" {
		e.certificate(r)
	}
	m := e.table.Match([]byte(r.host), []byte(r.path))
	e.host(r, m)
	if m == nil {
		e.noRoute(r)
		return nil
	}
	e.route(r, m.Route)
	return nil
}

// isNotL7 says whether something else than L7 takes the connection, and explains it then.
func (e *explainer) isNotL7(r request) bool {
	want, other := e.o.HTTPPort, e.o.HTTPSPort
	if r.scheme == "https" {
		want, other = other, want
	}
	isL7 := r.port == want || r.port == other // which are 0 if there is none, as no port is
	if addr, ok := isIP(r.host); ok && (!isL7 || !e.isOwn(addr) || !e.servesL7(addr)) {
		e.connection(connection{protocol: model.TCP, to: netip.AddrPortFrom(addr, r.port)})
		return true
	}
	switch r.port {
	case want:
		e.step("listener", fmt.Sprintf("L7 takes %s on port %d", r.scheme, want))
		return false
	case other:
		e.conclude(Refused, fmt.Sprintf("port %d speaks %s, and the request comes in %s", other, otherScheme(r.scheme), r.scheme))
		e.hint(where(r.scheme, want))
		return true
	}
	return e.namedPort(r, want)
}

// namedPort explains a port of a host that is a name, which says nothing about the address: it can only be a NodePort.
func (e *explainer) namedPort(r request, want uint16) bool {
	if s, p := e.nodePort(model.TCP, r.port); s != nil {
		e.step("listener", fmt.Sprintf("%d is a NodePort, at every address of this edge that serves those, whatever the name", r.port))
		e.forwardNodePort(connection{protocol: model.TCP}, s, p)
		return true
	}
	e.conclude(None, fmt.Sprintf("nothing serves %s on port %d", r.scheme, r.port))
	e.hint(where(r.scheme, want))
	return true
}

func otherScheme(s string) string {
	if s == "http" {
		return "https"
	}
	return "http"
}

// where says on which port a scheme is served.
func where(scheme string, port uint16) string {
	if port == 0 {
		return fmt.Sprintf("this edge does not serve %s (l7.%sPort)", scheme, scheme)
	}
	return fmt.Sprintf("this edge serves %s on port %d (l7.%sPort)", scheme, port, scheme)
}

// isIP says whether the host of a request is an address.
func isIP(host string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return addr.Unmap(), err == nil
}

// certificate says what a client that names the host is shown: the host's own, else its wildcard's, else the default one,
// as the gateway does. A client does not name an IP address (RFC 6066 section 3).
func (e *explainer) certificate(r request) {
	c, why := e.presented(r.host)
	if c == nil {
		e.step("certificate", "a self-signed one, as no Secret has one for "+r.host+" and there is no default certificate (l7.tls.defaultCertificate)")
		if _, ok := isIP(r.host); ok {
			e.hint("clients refuse the self-signed certificate, and of an address they do not tell its name: only the default certificate can be for it")
		} else {
			e.hint("clients refuse the self-signed certificate: spec.tls of the Ingress has to name the host and a Secret of type kubernetes.io/tls that the edge may read")
		}
		e.tell(func(p model.Problem) bool { return p.Reason == model.ReasonSecretNotFound && p.Object.Kind == "Secret" })
		return
	}
	e.concerns(c.Ref)
	e.out.Certificate = certificateView(c)
	e.step("certificate", fmt.Sprintf("%v, %s, until %s", c.Ref, why, c.NotAfter.Format("2006-01-02 15:04:05 MST")))
	if !e.o.Now.IsZero() && e.o.Now.After(c.NotAfter) {
		e.hint(fmt.Sprintf("the certificate of %v has expired: clients refuse it", c.Ref))
	}
	if c.Pair != nil && c.Pair.Leaf != nil && c.Pair.Leaf.VerifyHostname(r.host) != nil {
		e.hint(fmt.Sprintf("the certificate of %v is not for %s but for %s: clients refuse it", c.Ref, r.host, namesOf(c.Pair.Leaf)))
	}
}

// namesOf shows a few of the names of a certificate, in quotes: they are whatever its author has written.
func namesOf(c *x509.Certificate) string {
	var names []string
	for _, n := range c.DNSNames {
		names = append(names, strconv.QuoteToASCII(n))
	}
	return cmp.Or(few(names), "no DNS name")
}

func certificateView(c *model.Certificate) *Certificate {
	return &Certificate{c.Ref.String(), c.Hosts, c.Default, c.NotAfter}
}

// presented is the certificate for a name, and why it is, or nil.
func (e *explainer) presented(host string) (_ *model.Certificate, why string) {
	_, parent, _ := strings.Cut(host, ".")
	for _, name := range []string{host, "*." + parent} {
		i := slices.IndexFunc(e.s.Certificates, func(c model.Certificate) bool { return slices.Contains(c.Hosts, name) })
		if _, named := isIP(host); i >= 0 && !named {
			return &e.s.Certificates[i], "which is for " + name
		}
	}
	i := slices.IndexFunc(e.s.Certificates, func(c model.Certificate) bool { return c.Default })
	if i < 0 {
		return nil, ""
	}
	return &e.s.Certificates[i], "the default, as no other is for " + host
}

// host says whose routes decide.
func (e *explainer) host(r request, m *route.Route) {
	e.tell(func(p model.Problem) bool { return p.Object.Kind == "Ingress" && mentions(p.Message, r.host) })
	name, routes := e.deciding(r.host)
	switch {
	case len(routes) == 0:
	case name == r.host:
		e.step("host", r.host+" is named by "+e.owners(routes))
	case name != "":
		e.step("host", fmt.Sprintf("%s is named by no Ingress, but %s, by %s", r.host, name, e.owners(routes)))
	default:
		e.step("host", r.host+" is named by no Ingress: the routes for any host decide, by "+e.owners(routes))
	}
	if m == nil && len(routes) > 0 {
		for _, t := range routes {
			e.concerns(t.Ref)
		}
	}
}

// deciding are the routes that a host is left to: its own, else its wildcard's, else those for any host, and under which
// name they stand.
func (e *explainer) deciding(host string) (name string, _ []model.Route) {
	_, parent, _ := strings.Cut(host, ".")
	for _, name := range []string{host, "*." + parent} {
		if routes := e.routesOf(name); len(routes) > 0 {
			return name, routes
		}
	}
	return "", e.routesOf("")
}

// routesOf are the routes of one Route.Host.
func (e *explainer) routesOf(host string) []model.Route {
	first, found := slices.BinarySearchFunc(e.s.Routes, host, func(r model.Route, h string) int { return strings.Compare(r.Host, h) })
	if !found {
		return nil
	}
	last := first
	for last < len(e.s.Routes) && e.s.Routes[last].Host == host {
		last++
	}
	return e.s.Routes[first:last]
}

// owners names a few of the objects that ask for the routes.
func (e *explainer) owners(routes []model.Route) string {
	var names []string
	for _, r := range routes {
		if n := r.Ref.String(); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return few(names)
}

// few shows the first of many.
func few(items []string) string {
	const most = 5
	if len(items) > most {
		return strings.Join(items[:most], ", ") + fmt.Sprintf(" and %d more", len(items)-most)
	}
	return strings.Join(items, ", ")
}

// route says which route takes the request, why a nearer one does not, and what it leads to.
func (e *explainer) route(r request, m *model.Route) {
	e.concerns(m.Ref)
	view := routeView(m)
	e.out.Route = &view
	e.step("path", fmt.Sprintf("%s takes %s, by %v", routeName(m), r.path, m.Ref))
	for _, miss := range e.nearMisses(r, m) {
		e.step("not", miss)
	}
	if r.scheme == "http" && m.RedirectHTTPS {
		if !strings.HasPrefix(r.path, acmeChallenges) {
			e.redirect(r, m)
			return
		}
		e.step("redirect", "not for ACME challenges, which come before there is a certificate")
	}
	e.backends(m)
}

// redirect concludes that the client is sent to https.
func (e *explainer) redirect(r request, m *model.Route) {
	location := "https://" + r.host
	if e.o.HTTPSPort != 443 && e.o.HTTPSPort != 0 {
		location += ":" + strconv.Itoa(int(e.o.HTTPSPort))
	}
	location += r.path
	e.step("redirect", "308 to "+location+", as spec.tls names the host")
	e.conclude(Redirect, fmt.Sprintf("%v redirects it to %s", m.Ref, location))
	e.hint("to go on: sallyport explain " + location)
	e.hint("annotation sallyport.io/ssl-redirect: \"false\" on the Ingress, or l7.tls.redirect: false, turns redirects off")
	e.hint("where a proxy in front ends TLS, clients are redirected for ever unless it is one of l7.trustedProxies")
}

func routeView(m *model.Route) Route {
	return Route{m.Ref.String(), m.Host, m.Path, string(m.Match), m.RedirectHTTPS}
}

// routeName gives "Prefix /cart of shop.example.com".
func routeName(m *model.Route) string {
	host := m.Host
	if host == "" {
		host = "any host"
	}
	if m.Match == model.MatchDefault {
		return "the default backend of " + host
	}
	return fmt.Sprintf("%s %s of %s", m.Match, m.Path, host)
}

// backends says what the route leads to.
func (e *explainer) backends(m *model.Route) {
	total, weights := 0, 0
	for _, b := range m.Backends {
		weights += max(b.Weight, 0)
	}
	for _, b := range m.Backends {
		s := e.s.Service(b.Service)
		if s == nil || s.Port(b.Port, model.TCP) == nil {
			e.step("backend", fmt.Sprintf("%v port %d does not exist", b.Service, b.Port))
			continue
		}
		p := s.Port(b.Port, model.TCP)
		view := e.backend(s, p, p.Preferred())
		if weights > 0 {
			view.Percent = 100 * max(b.Weight, 0) / weights
		}
		e.out.Backends = append(e.out.Backends, view)
		total += len(view.Destinations)
	}
	switch names := backendNames(e.out.Backends); {
	case len(m.Backends) == 0:
		e.conclude(Refused, fmt.Sprintf("the request is answered 503: %v names no backend that can be used", m.Ref))
	case total == 0:
		e.conclude(Refused, fmt.Sprintf("the request is answered 503: %s has nothing that it could be sent to", list(names, "the backend")))
	default:
		e.conclude(Served, fmt.Sprintf("%v sends it to %s, %s", m.Ref, strings.Join(names, " and "), count(total, "destination")))
	}
}

func backendNames(all []Backend) []string {
	var names []string
	for _, b := range all {
		names = append(names, fmt.Sprintf("%s port %d", b.Service, b.Port))
	}
	return names
}
