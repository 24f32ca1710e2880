package explain

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sallyport/watcher/model"
)

// An object is the target of service/... and ingress/....
type object struct{ cluster, kind, namespace, name string }

// is says whether the object is meant. Without a cluster, that of any is.
func (o object) is(r model.ObjectRef) bool {
	return r.Kind == o.kind && r.Namespace == o.namespace && r.Name == o.name && (o.cluster == "" || r.Cluster == o.cluster)
}

// one picks the object that is meant, if it is among those known.
func (o object) one(refs []model.ObjectRef) (model.ObjectRef, error) {
	var found []model.ObjectRef
	for _, r := range refs {
		if o.is(r) && !slices.Contains(found, r) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return model.ObjectRef{Cluster: o.cluster, Kind: o.kind, Namespace: o.namespace, Name: o.name}, nil
	case 1:
		return found[0], nil
	}
	return model.ObjectRef{}, fmt.Errorf("%s %s/%s is in more than one cluster: say which, as in %s/%s", o.kind, o.namespace, o.name,
		strings.ToLower(o.kind), path(found[0]))
}

// service explains what leads to a Service.
func (o object) service(e *explainer) error {
	var refs []model.ObjectRef
	for i := range e.s.Services {
		refs = append(refs, e.s.Services[i].Ref)
	}
	ref, err := o.one(refs)
	if err != nil {
		return err
	}
	e.concerns(ref)
	s := e.s.Service(ref)
	if s == nil {
		e.conclude(None, fmt.Sprintf("%v is not served: there is none, or it can be sent no traffic", ref))
		e.hint(fmt.Sprintf("Services of type ExternalName, and those left to another service proxy (label service.kubernetes.io/service-proxy-name), are not served: kubectl -n %s get service %s -o yaml",
			ref.Namespace, ref.Name))
		return nil
	}
	ways, total := e.waysTo(s), 0
	for i := range s.Ports {
		b := e.backend(s, &s.Ports[i], s.Ports[i].Destinations)
		e.out.Backends = append(e.out.Backends, b)
		total += len(b.Destinations)
	}
	switch {
	case len(ways) == 0:
		e.conclude(None, fmt.Sprintf("nothing leads to %v from outside of the cluster", ref))
		e.hint("give it type NodePort, or LoadBalancer with an address of a pool, or name it in an Ingress")
	case total == 0:
		e.conclude(Refused, fmt.Sprintf("%v has nothing that connections could be sent to", ref))
	default:
		e.conclude(Served, fmt.Sprintf("%v is reached by %s", ref, few(ways)))
	}
	return nil
}

// waysTo lists what leads to a Service: its addresses, NodePorts, and routes.
func (e *explainer) waysTo(s *model.Service) []string {
	var ways []string
	add := func(what, way string) {
		ways = append(ways, way)
		e.step(what, way)
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		for _, addr := range slices.Concat(s.VIPs, s.ExternalIPs, s.ClusterIPs) {
			if !e.isTaken(s, addr) {
				add(addressKind(s, addr), connection{protocol: p.Protocol, to: netip.AddrPortFrom(addr, p.Port)}.String())
			}
		}
		if p.NodePort != 0 {
			add("NodePort", fmt.Sprintf("%d/%s at %s", p.NodePort, p.Protocol, e.nodePortPlaces()))
		}
	}
	if len(ways) > 0 {
		e.policies(s)
	}
	for i := range e.s.Routes {
		m := &e.s.Routes[i]
		if slices.ContainsFunc(m.Backends, func(b model.Backend) bool { return b.Service == s.Ref }) {
			e.concerns(m.Ref)
			e.out.Routes = append(e.out.Routes, routeView(m))
			add("route", e.url(m))
		}
	}
	return ways
}

// policies tells what the Service asks for on the ways of L4.
func (e *explainer) policies(s *model.Service) {
	if s.Local {
		e.step("policy", "externalTrafficPolicy Local: nodes are sent to by the number of their endpoints, and pods evenly")
	}
	if s.SourceRanges != nil {
		where := "at VIPs"
		if e.o.SourceRangesOnNodePorts {
			where = "at VIPs and NodePorts"
		}
		e.step("clients", where+" "+sourcesText(s.SourceRanges))
	}
	e.treatment(s)
}

// nodePortPlaces says where NodePorts are served.
func (e *explainer) nodePortPlaces() string {
	if len(e.o.NodePortAddresses) == 0 {
		return "every address of this edge"
	}
	var all []string
	for _, p := range e.o.NodePortAddresses {
		all = append(all, p.String())
	}
	return strings.Join(all, ", ")
}

// url is where a route is asked for.
func (e *explainer) url(m *model.Route) string {
	scheme, port, standard := "http", e.o.HTTPPort, uint16(80)
	if m.RedirectHTTPS {
		scheme, port, standard = "https", e.o.HTTPSPort, 443
	}
	host := m.Host
	if host == "" {
		host = "any-host"
	}
	if port != standard && port != 0 {
		host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	switch m.Match {
	case model.MatchDefault:
		return fmt.Sprintf("%s://%s for what no other route takes", scheme, host)
	case model.MatchPrefix:
		return fmt.Sprintf("%s://%s%s and below", scheme, host, m.Path)
	default:
		return fmt.Sprintf("%s://%s%s", scheme, host, m.Path)
	}
}

// ingress explains what an Ingress has become.
func (o object) ingress(e *explainer) error {
	var refs []model.ObjectRef
	for i := range e.s.Routes {
		refs = append(refs, e.s.Routes[i].Ref)
	}
	for _, p := range e.o.Problems {
		refs = append(refs, p.Object)
	}
	ref, err := o.one(refs)
	if err != nil {
		return err
	}
	e.concerns(ref)
	ready, hosts := e.routesBy(ref)
	e.status(ref)
	switch routes := len(e.out.Routes); {
	case routes == 0:
		e.conclude(None, fmt.Sprintf("%v is not served: none of the routes is by it", ref))
		e.hint("there is no such Ingress, or it is of another class (spec.ingressClassName must name an IngressClass of controller sallyport.io/ingress), or all that it asks for is a Problem")
	case ready == 0:
		e.conclude(Refused, fmt.Sprintf("%v has %s for %s, and nothing that requests could be sent to", ref, count(routes, "route"), few(hosts)))
	default:
		e.conclude(Served, fmt.Sprintf("%v has %s for %s, %d of them with destinations", ref, count(routes, "route"), few(hosts), ready))
	}
	return nil
}

// routesBy adds the routes of an Ingress, and what they lead to. ready counts those that lead somewhere.
func (e *explainer) routesBy(ref model.ObjectRef) (ready int, hosts []string) {
	seen := map[model.Backend]bool{}
	for i := range e.s.Routes {
		m := &e.s.Routes[i]
		if m.Ref != ref {
			continue
		}
		e.out.Routes = append(e.out.Routes, routeView(m))
		if host := m.Host; host == "" {
			hosts = append(hosts, "any host")
		} else {
			hosts = append(hosts, host)
		}
		e.step("route", fmt.Sprintf("%s -> %s", e.url(m), list(backendsOf(m), "nothing that can be used: 503")))
		if e.leadsSomewhere(m, seen) {
			ready++
		}
	}
	e.certificates(hosts)
	return ready, slices.Compact(hosts)
}

func backendsOf(m *model.Route) []string {
	var out []string
	for _, b := range m.Backends {
		out = append(out, fmt.Sprintf("%v port %d", b.Service, b.Port))
	}
	return out
}

// leadsSomewhere adds the backends of the route, each once, and says whether one has a destination.
func (e *explainer) leadsSomewhere(m *model.Route, seen map[model.Backend]bool) bool {
	somewhere := false
	for _, b := range m.Backends {
		s := e.s.Service(b.Service)
		if s == nil || s.Port(b.Port, model.TCP) == nil {
			continue
		}
		p := s.Port(b.Port, model.TCP)
		somewhere = somewhere || len(p.Destinations) > 0
		if !seen[b] {
			seen[b] = true
			e.out.Backends = append(e.out.Backends, e.backend(s, p, p.Preferred()))
		}
	}
	return somewhere
}

// certificates says what the hosts present.
func (e *explainer) certificates(hosts []string) {
	if e.o.HTTPSPort == 0 {
		return
	}
	for i := range e.s.Certificates {
		c := &e.s.Certificates[i]
		var of []string
		for _, h := range slices.Compact(slices.Clone(hosts)) {
			if slices.Contains(c.Hosts, h) {
				of = append(of, h)
			}
		}
		if len(of) > 0 {
			e.concerns(c.Ref)
			e.step("certificate", fmt.Sprintf("%v for %s, until %s", c.Ref, few(of), c.NotAfter.Format("2006-01-02 15:04:05 MST")))
		}
	}
}

// status says what the API server shows as the addresses.
func (e *explainer) status(ref model.ObjectRef) {
	st := e.s.Status(ref)
	if st == nil || len(st.Addresses) == 0 {
		return
	}
	var all []string
	for _, a := range st.Addresses {
		if a.IP.IsValid() {
			all = append(all, a.IP.String())
		} else {
			all = append(all, a.Hostname)
		}
	}
	e.step("status", strings.Join(all, ", "))
}
