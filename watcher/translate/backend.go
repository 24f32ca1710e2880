package translate

import (
	"strconv"

	networkingv1 "k8s.io/api/networking/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// A backendService is what a Service has become. It depends on the Service, its EndpointSlices, the nodes and the options
// alone, and is not modified once it is made.
type backendService struct {
	model.Service
	why       string // it can be sent no traffic; the Service is empty then
	named     map[string]*model.ServicePort
	unreached map[listener]destinations // of the service ports that have endpoints, but none that this edge reaches
	claims    []nodePortClaim
	status    *model.Status   // nil if there is nothing to say of it
	problems  []model.Problem // of its EndpointSlices, too
	asked     []healthAnswer  // what nodes told when it was made
}

// index is called when Ports is complete. Ingresses may name each of many ports.
func (b *backendService) index() {
	b.IndexPorts()
	if len(b.Ports) <= model.FewPorts {
		return
	}
	b.named = make(map[string]*model.ServicePort, len(b.Ports))
	for i := range b.Ports {
		p := &b.Ports[i]
		b.named[p.Name] = preferTCP(b.named[p.Name], p)
	}
}

// portNamed returns the service port of that name, or nil.
func (b *backendService) portNamed(name string) (p *model.ServicePort) {
	if b.named != nil {
		return b.named[name]
	}
	for i := range b.Ports {
		if b.Ports[i].Name == name {
			p = preferTCP(p, &b.Ports[i])
		}
	}
	return p
}

// portNumbered returns the service port of that number, or nil.
func (b *backendService) portNumbered(n int32) *model.ServicePort {
	if !isPort(n) {
		return nil
	}
	port := uint16(n)
	return preferTCP(preferTCP(b.Port(port, model.TCP), b.Port(port, model.UDP)), b.Port(port, model.SCTP))
}

// preferTCP returns the first of two service ports, either of which may be nil, unless only the other is TCP.
func preferTCP(a, b *model.ServicePort) *model.ServicePort {
	if a == nil || b != nil && a.Protocol != model.TCP && b.Protocol == model.TCP {
		return b
	}
	return a
}

// backend translates an IngressBackend. It returns none, and says why, if nothing usable is named: the route then
// answers 503, because another route must not take the requests that were meant for this one.
func (g *ingress) backend(b *networkingv1.IngressBackend, field string) []model.Backend {
	if b.Service == nil {
		if b.Resource != nil {
			g.complain(field+".resource", model.ReasonUnsupported, "%s %q is not served: name a service", b.Resource.Kind, b.Resource.Name)
		} else {
			g.complain(field+".service", model.ReasonInvalidField, "no service is named")
		}
		return nil
	}
	field += ".service"
	name := objects.Name{Namespace: g.Namespace, Name: b.Service.Name}
	svc, ok := g.memory.backend(name)
	g.made.backends = append(g.made.backends, namedBackend{name, svc})
	if !ok {
		g.complain(field+".name", model.ReasonServiceNotFound, "Service %q does not exist in namespace %s", b.Service.Name, g.Namespace)
		return nil
	}
	if svc.why != "" {
		g.complain(field+".name", model.ReasonUnsupported, "Service %q %s", b.Service.Name, svc.why)
		return nil
	}
	port, ok := g.backendPort(svc, b.Service.Port, field+".port")
	if !ok {
		return nil
	}
	g.explainUnreachedBackend(svc, port, field)
	return []model.Backend{{Service: svc.Ref, Port: port, Weight: 1}}
}

// backendPort finds the TCP port that is named or numbered.
func (g *ingress) backendPort(svc *backendService, p networkingv1.ServiceBackendPort, field string) (_ uint16, ok bool) {
	found, shown := svc.portNumbered(p.Number), strconv.Itoa(int(p.Number))
	if p.Name != "" {
		if p.Number != 0 {
			g.complain(field, model.ReasonInvalidField, "both name %q and number %d are given: the name is used", p.Name, p.Number)
		}
		found, shown = svc.portNamed(p.Name), strconv.Quote(p.Name)
		field += ".name"
	} else {
		field += ".number"
	}
	switch {
	case found == nil:
		g.complain(field, model.ReasonPortNotFound, "Service %q has no port %s; it has %s", svc.Ref.Name, shown, portList(svc.Ports))
	case found.Protocol != model.TCP:
		g.complain(field, model.ReasonPortNotFound, "port %s of Service %q is not TCP, which HTTP needs", shown, svc.Ref.Name)
	default:
		return found.Port, true
	}
	return 0, false
}

// portList shows a few of the ports, for messages.
func portList(ports []model.ServicePort) string {
	const most = 8
	var s string
	for i, p := range ports {
		if i == most {
			return s + ", ..."
		}
		if i > 0 {
			s += ", "
		}
		s += strconv.Itoa(int(p.Port))
		if p.Name != "" {
			s += " (" + p.Name + ")"
		}
	}
	if s == "" {
		return "none"
	}
	return s
}

// explainUnreachedBackend records why the requests for a backend get nowhere although there are endpoints.
func (g *ingress) explainUnreachedBackend(svc *backendService, port uint16, field string) {
	switch d, unreached := svc.unreached[listener{model.TCP, port}]; {
	case !unreached:
	case d.onlyIPv6:
		g.complain(field, model.ReasonUnsupported, onlyIPv6)
	default:
		g.complain(field, model.ReasonNoNodePort, noNodePort, "Service "+strconv.Quote(svc.Ref.Name)+" port "+strconv.Itoa(int(port)))
	}
}
