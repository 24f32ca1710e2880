package translate

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sallyport/watcher/model"
)

// Names that users write in Services.
const (
	// LoadBalancerClass in spec.loadBalancerClass makes a Service ours, as does naming no class.
	LoadBalancerClass = "sallyport.io/edge"
	// LoadBalancerIPs is the annotation that asks for addresses, as a comma-separated list. It wins over the deprecated
	// spec.loadBalancerIP, which holds only one.
	LoadBalancerIPs = "sallyport.io/load-balancer-ips"
)

// labelServiceProxyName on a Service hands it to another service proxy (KEP-2447).
const labelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// services adds the cluster's Services to the snapshot and fills t.backends.
func (t *translator) services() {
	t.indexSlices()
	t.out.Services = slices.Grow(t.out.Services, len(t.in.Services))
	for _, s := range sorted(t.in.Services) {
		key := nameOf(s)
		if _, repeated := t.backends[key]; repeated {
			continue
		}
		b := backendService{why: notServed(s)}
		if b.why == "" {
			t.service(s, &b)
			t.out.Services = append(t.out.Services, b.Service)
		}
		t.backends[key] = b
		t.serviceStatus(s)
	}
}

// notServed says why a Service can be sent no traffic at all, or is empty.
func notServed(s *corev1.Service) string {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return "is of type ExternalName, which Sallyport does not resolve: it would let a Service name any host"
	}
	if proxy, ok := s.Labels[labelServiceProxyName]; ok {
		return "is left to the service proxy " + proxy + " (label " + labelServiceProxyName + ")"
	}
	return ""
}

// service translates s into b.
func (t *translator) service(s *corev1.Service, b *backendService) {
	m := &b.Service
	m.Ref, m.Created, m.LoadBalancer = t.ref("Service", s), created(s), isOurs(s)
	if m.LoadBalancer {
		t.requestedVIPs(s, m)
	}
	t.explainUnsupported(s, m)
	m.Ports = make([]model.ServicePort, 0, len(s.Spec.Ports))
	clear(t.ports)
	for i := range s.Spec.Ports {
		t.servicePort(s, b, i)
	}
	b.index()
}

// isHeadless says whether a Service has no virtual IP: it is for DNS, and for routes, which use endpoints directly.
func isHeadless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

// isOurs says whether we are to give the Service a VIP.
func isOurs(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && !isHeadless(s) &&
		value(s.Spec.LoadBalancerClass, LoadBalancerClass) == LoadBalancerClass
}

// explainUnsupported records what a Service that is open to the outside asks for in vain. The rest of it is served.
func (t *translator) explainUnsupported(s *corev1.Service, m *model.Service) {
	if m.LoadBalancer && len(s.Spec.LoadBalancerSourceRanges) > 0 {
		t.problem(m.Ref, "spec.loadBalancerSourceRanges", model.ReasonUnsupported, "not applied: every client is let in; restrict them before the edge")
	}
	if hasNodePorts(s) && s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		t.problem(m.Ref, "spec.sessionAffinity", model.ReasonUnsupported, "ClientIP is not applied: a client's connections go to any endpoint")
	}
	for i, ip := range s.Spec.ExternalIPs {
		t.problem(m.Ref, indexed("spec.externalIPs", i, ""), model.ReasonUnsupported,
			"%s is not served by this edge: use type LoadBalancer, with the address in annotation %s", ip, LoadBalancerIPs)
	}
}

// requestedVIPs reads the addresses that the Service asks for.
func (t *translator) requestedVIPs(s *corev1.Service, m *model.Service) {
	list := s.Annotations[LoadBalancerIPs]
	if strings.TrimSpace(list) == "" {
		if s.Spec.LoadBalancerIP != "" {
			t.request(m, "spec.loadBalancerIP", s.Spec.LoadBalancerIP)
		}
		return
	}
	t.request(m, annotationField(LoadBalancerIPs), strings.Split(list, ",")...)
	if ip := s.Spec.LoadBalancerIP; ip != "" && !isOnly(m.RequestedVIPs, ip) {
		t.problem(m.Ref, "spec.loadBalancerIP", model.ReasonInvalidField,
			"%q differs from annotation %s, which wins: remove one of them", ip, LoadBalancerIPs)
	}
}

// maxRequestedVIPs is how many addresses a Service may ask for: an annotation can hold 30,000, which are as many rules and
// make a status that the API server does not take.
const maxRequestedVIPs = 64

// request adds the addresses given in a field.
func (t *translator) request(m *model.Service, field string, ips ...string) {
	m.RequestField = field
	if len(ips) > maxRequestedVIPs {
		t.problem(m.Ref, field, model.ReasonUnsupported, "%d addresses are asked for, and a Service has %d at most: the others are left out", len(ips), maxRequestedVIPs)
		ips = ips[:maxRequestedVIPs]
	}
	for _, s := range ips {
		s = strings.TrimSpace(s)
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			t.problem(m.Ref, field, model.ReasonInvalidField, "%q is not an IP address", s)
			continue
		}
		if addr = addr.Unmap(); addr.Is6() && t.o.OnlyIPv4VIPs {
			t.problem(m.Ref, field, model.ReasonUnsupported, "%v is not served: VIPs are IPv4 with this dataplane (l4.dataplane): ask for such an address", addr)
			continue
		}
		if !slices.Contains(m.RequestedVIPs, addr) {
			m.RequestedVIPs = append(m.RequestedVIPs, addr)
		}
	}
}

// isOnly says whether ip is the one address in the list.
func isOnly(list []netip.Addr, ip string) bool {
	addr, err := netip.ParseAddr(ip)
	return err == nil && len(list) == 1 && list[0] == addr.Unmap()
}

// maxEndpoints is of how many endpoints, of all ports together, a Service gets no more. Each is some 150 bytes: the 20,000 ports
// and 1,000 endpoints that one EndpointSlice may have would be 3 GB.
const maxEndpoints = 100_000

// servicePort translates spec.ports[i] into b, unless it cannot be served.
func (t *translator) servicePort(s *corev1.Service, b *backendService, i int) {
	spec := &s.Spec.Ports[i]
	protocol, ok := t.protocol(spec, b.Ref, i)
	if !ok || !t.checkNumbers(spec, b.Ref, i, protocol) {
		return
	}
	p := model.ServicePort{Name: spec.Name, Protocol: protocol, Port: uint16(spec.Port)}
	if hasNodePorts(s) {
		p.NodePort = t.nodePort(s, b, &p, i)
	}
	if b.endpoints <= maxEndpoints {
		p.Endpoints = endpoints(t.slices[nameOf(s)], isHeadless(s), spec.Name, protocol)
		b.endpoints += len(p.Endpoints)
	} else {
		t.problem(b.Ref, indexed("spec.ports", i, ""), model.ReasonUnsupported,
			"the ports before it have more than %d endpoints, and no more are held for one Service: make several of it", maxEndpoints)
	}
	d := t.destinations(&p, s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal)
	p.Destinations = d.list
	b.Ports = append(b.Ports, p)
	if d.noNodePort || d.onlyIPv6 {
		if b.unreached == nil {
			b.unreached = map[listener]destinations{}
		}
		b.unreached[listener{protocol, p.Port}] = d
		t.explainUnreached(s, b.Ref, i, d)
	}
}

// nodePort claims the node port of spec.ports[i].
func (t *translator) nodePort(s *corev1.Service, b *backendService, p *model.ServicePort, i int) uint16 {
	number, field := uint16(s.Spec.Ports[i].NodePort), indexed("spec.ports", i, ".nodePort")
	switch {
	case number != 0:
		t.claims = append(t.claims, nodePortClaim{listener{p.Protocol, number}, b.Ref, b.Created, p.Port, field})
	case s.Spec.Type == corev1.ServiceTypeNodePort:
		t.problem(b.Ref, field, model.ReasonNoNodePort, "no nodePort is given, and only an API server chooses one: set it")
	}
	return number
}

// hasNodePorts says whether spec.ports[].nodePort means something.
func hasNodePorts(s *corev1.Service) bool {
	return !isHeadless(s) && (s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer)
}

func (t *translator) protocol(p *corev1.ServicePort, ref model.ObjectRef, i int) (_ model.Protocol, ok bool) {
	switch p.Protocol {
	case corev1.ProtocolTCP, "":
		return model.TCP, true
	case corev1.ProtocolUDP:
		return model.UDP, true
	case corev1.ProtocolSCTP:
		t.problem(ref, indexed("spec.ports", i, ".protocol"), model.ReasonUnsupported, "SCTP is not served; the other ports are")
	default:
		t.problem(ref, indexed("spec.ports", i, ".protocol"), model.ReasonInvalidField, "%q is not a protocol: use TCP or UDP", p.Protocol)
	}
	return "", false
}

// checkNumbers refuses what an API server would not have taken.
func (t *translator) checkNumbers(spec *corev1.ServicePort, ref model.ObjectRef, i int, protocol model.Protocol) bool {
	l := listener{protocol, uint16(spec.Port)}
	switch {
	case !isPort(spec.Port):
		t.problem(ref, indexed("spec.ports", i, ".port"), model.ReasonInvalidField, "%d is not between 1 and 65535", spec.Port)
	case spec.NodePort != 0 && !isPort(spec.NodePort):
		t.problem(ref, indexed("spec.ports", i, ".nodePort"), model.ReasonInvalidField, "%d is not between 1 and 65535", spec.NodePort)
	case t.ports[l]:
		t.problem(ref, indexed("spec.ports", i, ".port"), model.ReasonInvalidField,
			"%d/%s stands in the list twice: the first is served", spec.Port, protocol)
	default:
		t.ports[l] = true
		return true
	}
	return false
}

// explainUnreached records why a service port that is open to the outside gets no traffic through. Of one that only
// routes name, the route tells.
func (t *translator) explainUnreached(s *corev1.Service, ref model.ObjectRef, i int, d destinations) {
	switch {
	case !hasNodePorts(s):
	case d.onlyIPv6:
		t.problem(ref, "spec.ipFamilies", model.ReasonUnsupported, onlyIPv6)
	case isOurs(s):
		t.problem(ref, indexed("spec.ports", i, ".nodePort"), model.ReasonNoNodePort, noNodePort, "the service port")
	}
}

// What is wrong with service ports that have endpoints, but none that this edge reaches.
const (
	noNodePort = "%s has no nodePort, and its pods are not reached directly: use reach pods, or auto with routed pods, " +
		"or give it one (type: NodePort, or allocateLoadBalancerNodePorts: true)"
	onlyIPv6 = "only IPv6 endpoints, which are not served: give the Service an IPv4 family (spec.ipFamilyPolicy: PreferDualStack)"
)

// sortServices orders the services of all clusters.
func sortServices(s *model.Snapshot) {
	slices.SortStableFunc(s.Services, func(a, b model.Service) int { return a.Ref.Compare(b.Ref) })
}
