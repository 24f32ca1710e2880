package translate

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"sallyport/watcher/model"
)

// LoadBalancerClass in spec.loadBalancerClass makes a Service ours, as does naming no class.
const LoadBalancerClass = "sallyport.io/edge"

// labelServiceProxyName on a Service hands it to another service proxy (KEP-2447).
const labelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// services adds the cluster's Services to the snapshot.
func (t *translator) services() {
	t.memory.translate(&t.network, &t.in)
	t.out.Services = slices.Grow(t.out.Services, len(t.memory.order))
	t.out.Statuses = slices.Grow(t.out.Statuses, t.memory.statuses())
	for _, s := range t.memory.order {
		t.add(s.result)
	}
}

// add puts a Service into the snapshot.
func (t *translator) add(b *backendService) {
	if b.why == "" {
		t.out.Services = append(t.out.Services, b.Service)
	}
	if b.status != nil {
		t.out.Statuses = append(t.out.Statuses, *b.status)
	}
	t.out.Problems = append(t.out.Problems, b.problems...)
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

// A service is one Service being translated. The space that it takes is used for one after the other.
type service struct {
	*network
	*corev1.Service
	slices    []endpointSlice
	ports     map[listener]bool // that it has so far, if it may have many
	endpoints int               // of all ports so far
	told      map[string]bool   // by nodes, whether they have endpoints
	result    *backendService

	space []model.Endpoint // for those of the slices
}

// of translates a Service with its EndpointSlices.
func (s *service) of(v *corev1.Service, slices []*discoveryv1.EndpointSlice) *backendService {
	b := &backendService{why: notServed(v)}
	*s = service{network: s.network, Service: v, result: b, slices: s.slices[:0], space: s.space[:0]}
	b.Ref, b.Created = s.ref("Service", v), created(v)
	b.status = s.statusOf()
	if b.why == "" {
		s.read(slices)
		s.translate()
	}
	if len(b.problems) > model.MaxProblems {
		b.problems = append([]model.Problem(nil), model.FirstProblems(b.problems)...) // what has thousands is not to be held, nor sorted with all others
	}
	return b
}

// translate fills the result for a Service that can be sent traffic.
func (s *service) translate() {
	b := s.result
	b.LoadBalancer = isOurs(s.Service)
	b.Local = s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && !isHeadless(s.Service)
	if b.Local && s.Spec.Type == corev1.ServiceTypeLoadBalancer && isPort(s.Spec.HealthCheckNodePort) {
		b.HealthCheckNodePort = uint16(s.Spec.HealthCheckNodePort)
	}
	s.addresses()
	s.clients()
	b.Ports = make([]model.ServicePort, 0, len(s.Spec.Ports))
	if len(s.Spec.Ports) > model.FewPorts {
		s.ports = make(map[listener]bool, len(s.Spec.Ports))
	}
	for i := range s.Spec.Ports {
		s.port(i)
	}
	b.index()
}

// complain records what of the Service could not be honoured.
func (s *service) complain(field string, r model.Reason, format string, args ...any) {
	s.result.problems = append(s.result.problems, problemOf(s.result.Ref, field, r, format, args...))
}

// isHeadless says whether a Service has no virtual IP: it is for DNS, and for routes, which use endpoints directly.
func isHeadless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

// isOurs says whether we are to give the Service a VIP.
func isOurs(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && !isHeadless(s) &&
		value(s.Spec.LoadBalancerClass, LoadBalancerClass) == LoadBalancerClass
}

// hasNodePorts says whether spec.ports[].nodePort means something.
func hasNodePorts(s *corev1.Service) bool {
	return !isHeadless(s) && (s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer)
}

// sortServices orders the services of all clusters.
func sortServices(s *model.Snapshot) {
	less := func(a, b model.Service) int { return a.Ref.Compare(b.Ref) }
	if !slices.IsSortedFunc(s.Services, less) { // which it is, but for several clusters
		slices.SortStableFunc(s.Services, less)
	}
}
