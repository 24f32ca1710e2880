package translate

import (
	corev1 "k8s.io/api/core/v1"

	"sallyport/watcher/model"
)

// maxEndpoints is of how many endpoints, of all ports together, a Service gets no more. Each is some 150 bytes: the 20,000 ports
// and 1,000 endpoints that one EndpointSlice may have would be 3 GB.
const maxEndpoints = 100_000

// port translates spec.ports[i], unless it cannot be served.
func (s *service) port(i int) {
	spec, b := &s.Spec.Ports[i], s.result
	protocol, ok := s.protocol(spec, i)
	if !ok || !s.checkNumbers(spec, i, protocol) {
		return
	}
	p := model.ServicePort{Name: spec.Name, Protocol: protocol, Port: uint16(spec.Port)}
	if hasNodePorts(s.Service) {
		p.NodePort = s.nodePort(&p, i)
	}
	if s.endpoints <= maxEndpoints {
		p.Endpoints = endpoints(s.slices, isHeadless(s.Service), spec.Name, protocol)
		s.endpoints += len(p.Endpoints)
	} else {
		s.complain(indexed("spec.ports", i, ""), model.ReasonUnsupported,
			"the ports before it have more than %d endpoints, and no more are held for one Service: make several of it", maxEndpoints)
	}
	d := s.destinations(&p)
	p.Destinations = d.list
	b.Ports = append(b.Ports, p)
	if d.noNodePort || d.onlyIPv6 {
		if b.unreached == nil {
			b.unreached = map[listener]destinations{}
		}
		b.unreached[listener{protocol, p.Port}] = d
		s.explainUnreached(i, d)
	}
}

// nodePort claims the node port of spec.ports[i].
func (s *service) nodePort(p *model.ServicePort, i int) uint16 {
	number, b := uint16(s.Spec.Ports[i].NodePort), s.result
	switch {
	case number != 0:
		if b.claims == nil {
			b.claims = make([]nodePortClaim, 0, len(s.Spec.Ports)-i)
		}
		b.claims = append(b.claims, nodePortClaim{listener{p.Protocol, number}, p.Port, i})
	case s.Spec.Type == corev1.ServiceTypeNodePort:
		s.complain(nodePortField(i), model.ReasonNoNodePort, "no nodePort is given, and only an API server chooses one: set it")
	}
	return number
}

func (s *service) protocol(p *corev1.ServicePort, i int) (_ model.Protocol, ok bool) {
	switch p.Protocol {
	case corev1.ProtocolTCP, "":
		return model.TCP, true
	case corev1.ProtocolUDP:
		return model.UDP, true
	case corev1.ProtocolSCTP:
		if s.o.SCTP {
			return model.SCTP, true
		}
		s.complain(indexed("spec.ports", i, ".protocol"), model.ReasonUnsupported, "SCTP is not served by this dataplane (l4.dataplane); the other ports are")
	default:
		s.complain(indexed("spec.ports", i, ".protocol"), model.ReasonInvalidField, "%q is not a protocol: use TCP, UDP or SCTP", p.Protocol)
	}
	return "", false
}

// checkNumbers refuses what an API server would not have taken.
func (s *service) checkNumbers(spec *corev1.ServicePort, i int, protocol model.Protocol) bool {
	l := listener{protocol, uint16(spec.Port)}
	switch {
	case !isPort(spec.Port):
		s.complain(indexed("spec.ports", i, ".port"), model.ReasonInvalidField, "%d is not between 1 and 65535", spec.Port)
	case spec.NodePort != 0 && !isPort(spec.NodePort):
		s.complain(nodePortField(i), model.ReasonInvalidField, "%d is not between 1 and 65535", spec.NodePort)
	case s.ports[l] || s.ports == nil && s.result.Port(l.port, protocol) != nil:
		s.complain(indexed("spec.ports", i, ".port"), model.ReasonInvalidField,
			"%d/%s stands in the list twice: the first is served", spec.Port, protocol)
	default:
		if s.ports != nil {
			s.ports[l] = true
		}
		return true
	}
	return false
}

// explainUnreached records why a service port that is open to the outside gets no traffic through. Of one that only
// routes name, the route tells.
func (s *service) explainUnreached(i int, d destinations) {
	b := s.result
	switch {
	case !hasNodePorts(s.Service) && len(b.ExternalIPs) == 0:
	case d.onlyIPv6:
		s.complain("spec.ipFamilies", model.ReasonUnsupported, onlyIPv6)
	case b.LoadBalancer || len(b.ExternalIPs) > 0:
		s.complain(nodePortField(i), model.ReasonNoNodePort, noNodePort, "the service port")
	}
}

// What is wrong with service ports that have endpoints, but none that this edge reaches.
const (
	noNodePort = "%s has no nodePort, and its pods are not reached directly: use reach pods, or auto with routed pods, " +
		"or give it one (type: NodePort, or allocateLoadBalancerNodePorts: true)"
	onlyIPv6 = "only IPv6 endpoints, which are not served: give the Service an IPv4 family (spec.ipFamilyPolicy: PreferDualStack)"
)
