package translate

import (
	"slices"
	"strconv"

	networkingv1 "k8s.io/api/networking/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// A backendService is a Service as routes see it.
type backendService struct {
	model.Service
	why       string // it can be sent no traffic; the Service is empty then
	unreached []unreached
}

// unreached is a service port that has endpoints, but none that this edge reaches.
type unreached struct {
	port     uint16
	protocol model.Protocol
	why      destinations
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
	svc, ok := g.backends[objects.Name{Namespace: g.Namespace, Name: b.Service.Name}]
	if !ok {
		g.complain(field+".name", model.ReasonServiceNotFound, "Service %q does not exist in namespace %s", b.Service.Name, g.Namespace)
		return nil
	}
	if svc.why != "" {
		g.complain(field+".name", model.ReasonUnsupported, "Service %q %s", b.Service.Name, svc.why)
		return nil
	}
	port, ok := g.backendPort(&svc, b.Service.Port, field+".port")
	if !ok {
		return nil
	}
	g.explainUnreachedBackend(&svc, port, field)
	return []model.Backend{{Service: svc.Ref, Port: port, Weight: 1}}
}

// backendPort finds the TCP port that is named or numbered.
func (g *ingress) backendPort(svc *backendService, p networkingv1.ServiceBackendPort, field string) (_ uint16, ok bool) {
	matches := func(sp model.ServicePort) bool { return int32(sp.Port) == p.Number }
	shown := strconv.Itoa(int(p.Number))
	if p.Name != "" {
		if p.Number != 0 {
			g.complain(field, model.ReasonInvalidField, "both name %q and number %d are given: the name is used", p.Name, p.Number)
		}
		matches = func(sp model.ServicePort) bool { return sp.Name == p.Name }
		shown = strconv.Quote(p.Name)
		field += ".name"
	} else {
		field += ".number"
	}
	isTCP := func(sp model.ServicePort) bool { return matches(sp) && sp.Protocol == model.TCP }
	if i := slices.IndexFunc(svc.Ports, isTCP); i >= 0 {
		return svc.Ports[i].Port, true
	}
	if slices.ContainsFunc(svc.Ports, matches) {
		g.complain(field, model.ReasonPortNotFound, "port %s of Service %q is not TCP, which HTTP needs", shown, svc.Ref.Name)
	} else {
		g.complain(field, model.ReasonPortNotFound, "Service %q has no port %s; it has %s", svc.Ref.Name, shown, portList(svc.Ports))
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
	for _, u := range svc.unreached {
		switch {
		case u.port != port || u.protocol != model.TCP:
		case u.why.onlyIPv6:
			g.complain(field, model.ReasonUnsupported, onlyIPv6)
		default:
			g.complain(field, model.ReasonNoNodePort, noNodePort, "Service "+strconv.Quote(svc.Ref.Name)+" port "+strconv.Itoa(int(port)))
		}
	}
}
