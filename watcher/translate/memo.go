package translate

import (
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// A Memo remembers what Services and the rules of Ingresses have become, so that a translation after a change costs little more than the change. It goes
// by the identity of objects, which sources never modify: one that is the same pointer as before is the same object. The zero
// value is empty and ready for use, by one translation at a time.
type Memo struct {
	clusters map[string]*memory
}

// memory is what is remembered of one cluster.
type memory struct {
	options  Options // that all was made by, without what is compared otherwise
	asks     bool    // nodes about their endpoints
	nodes    []nodeEntry
	round    uint64                                     // translations so far
	slices   map[*discoveryv1.EndpointSlice]*ownedSlice // in use
	services map[*corev1.Service]*rememberedService     // in use
	owners   map[objects.Name]*owner                    // of slices, and Services
	order    []*rememberedService                       // by name

	ingresses map[*networkingv1.Ingress]*ingressRules // in use
}

// An owner is a name that a Service has, or that EndpointSlices are for.
type owner struct {
	name    objects.Name
	slices  []*discoveryv1.EndpointSlice // in no order
	changed uint64                       // the round in which they last were others
	service *rememberedService           // nil if there is none
}

// An ownedSlice is an EndpointSlice that is in use.
type ownedSlice struct {
	owner *owner
	round uint64 // the last in which it was there
}

// A rememberedService is a Service that is in use.
type rememberedService struct {
	*owner
	object *corev1.Service
	round  uint64          // the last in which it was there
	result *backendService // nil before it is made
	made   uint64          // the round in which it was
}

// of returns what is remembered of a cluster as it is now: nothing, if nodes or options are others than before.
func (m *Memo) of(n *network) *memory {
	options := n.o
	options.PodsReachable, options.IPv6PodsReachable, options.NodeHealthy = nil, nil, nil // nodes hold the answers, and results
	options.Certificates, options.Memo = nil, nil
	asks := n.o.NodeHealthy != nil
	var last *memory
	if m != nil {
		last = m.clusters[n.cluster]
	}
	if last != nil && last.asks == asks && slices.Equal(last.nodes, n.nodes) && reflect.DeepEqual(last.options, options) {
		return last
	}
	next := &memory{
		options:  options,
		asks:     asks,
		nodes:    n.nodes,
		slices:   map[*discoveryv1.EndpointSlice]*ownedSlice{},
		services: map[*corev1.Service]*rememberedService{},
		owners:   map[objects.Name]*owner{},

		ingresses: map[*networkingv1.Ingress]*ingressRules{},
	}
	if m != nil {
		if m.clusters == nil {
			m.clusters = map[string]*memory{}
		}
		m.clusters[n.cluster] = next
	}
	return next
}

// translate brings the memory up to date with a cluster's objects.
func (m *memory) translate(n *network, c *objects.Cluster) {
	m.round++
	m.takeSlices(c.EndpointSlices)
	m.takeServices(c.Services)
	next := service{network: n}
	for _, s := range m.order {
		if s.result == nil || s.changed > s.made || !n.answersAsBefore(s.result) {
			s.result, s.made = next.of(s.object, s.slices), m.round
		}
	}
}

// takeSlices finds out whose EndpointSlices have changed.
func (m *memory) takeSlices(all []*discoveryv1.EndpointSlice) {
	there := 0
	for _, s := range all {
		known := m.slices[s]
		if known == nil {
			name := s.Labels[discoveryv1.LabelServiceName]
			if name == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
				continue // of no Service, or names that nothing resolves: kube-proxy ignores them too
			}
			known = &ownedSlice{owner: m.owner(objects.Name{Namespace: s.Namespace, Name: name})}
			known.owner.slices = append(known.owner.slices, s)
			known.owner.changed = m.round
			m.slices[s] = known
		}
		known.round = m.round
		there++
	}
	if there == len(m.slices) {
		return
	}
	for s, known := range m.slices {
		if known.round != m.round {
			o := known.owner
			o.slices = slices.DeleteFunc(o.slices, func(x *discoveryv1.EndpointSlice) bool { return x == s })
			o.changed = m.round
			delete(m.slices, s)
			m.tidy(o)
		}
	}
}

// owner is that of the name, and made if there is none.
func (m *memory) owner(name objects.Name) *owner {
	o := m.owners[name]
	if o == nil {
		o = &owner{name: name}
		m.owners[name] = o
	}
	return o
}

// tidy forgets an owner of nothing.
func (m *memory) tidy(o *owner) {
	if o.service == nil && len(o.slices) == 0 {
		delete(m.owners, o.name)
	}
}

// takeServices brings m.order up to date. Of Services with the same name, which an API server does not have, one is taken.
func (m *memory) takeServices(all []*corev1.Service) {
	var others []*corev1.Service
	for _, s := range all {
		if known := m.services[s]; known != nil {
			known.round = m.round
		} else {
			others = append(others, s)
		}
	}
	m.order = slices.DeleteFunc(m.order, m.forget)
	fresh := make([]*rememberedService, 0, len(others))
	for _, s := range others {
		if o := m.owner(nameOf(s)); o.service == nil {
			o.service = &rememberedService{owner: o, object: s, round: m.round}
			m.services[s] = o.service
			fresh = append(fresh, o.service)
		}
	}
	slices.SortFunc(fresh, func(a, b *rememberedService) int { return compareNames(a.name, b.name) })
	m.order = mergeServices(m.order, fresh)
}

// forget drops a Service if it is gone.
func (m *memory) forget(s *rememberedService) (gone bool) {
	if s.round == m.round {
		return false
	}
	delete(m.services, s.object)
	s.service = nil
	m.tidy(s.owner)
	return true
}

// mergeServices merges two lists that are ordered by name.
func mergeServices(a, b []*rememberedService) []*rememberedService {
	if len(b) == 0 {
		return a
	}
	out := make([]*rememberedService, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if compareNames(a[0].name, b[0].name) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// backend returns what the Service of that name has become. ok is false if there is none.
func (m *memory) backend(name objects.Name) (_ *backendService, ok bool) {
	o := m.owners[name]
	if o == nil || o.service == nil {
		return nil, false
	}
	return o.service.result, true
}

// statuses is how many Services have one.
func (m *memory) statuses() (n int) {
	for _, s := range m.order {
		if s.result.status != nil {
			n++
		}
	}
	return n
}

// A healthAnswer is what a node told at a Service's healthCheckNodePort.
type healthAnswer struct {
	node    model.ObjectRef
	healthy bool
}

// answersAsBefore says whether nodes tell the same of the Service as when it was translated.
func (n *network) answersAsBefore(b *backendService) bool {
	return !slices.ContainsFunc(b.asked, func(a healthAnswer) bool {
		return n.o.NodeHealthy(a.node, b.HealthCheckNodePort) != a.healthy
	})
}

// ingressRules are what the rules of an Ingress have become, and what that depends on beside the Ingress and the options. They are
// not modified once they are made.
type ingressRules struct {
	round    uint64 // the last in which they were in use
	secure   []string
	backends []namedBackend
	routes   []candidate
	problems []model.Problem
}

// A namedBackend is a Service that an Ingress names, and what it was then; nil if there was none.
type namedBackend struct {
	name objects.Name
	was  *backendService
}

// rules are those of an Ingress: as remembered, if nothing that they depend on has changed.
func (m *memory) rules(g *ingress) *ingressRules {
	r := m.ingresses[g.Ingress]
	if r == nil || !slices.Equal(r.secure, g.secure) || slices.ContainsFunc(r.backends, m.isOther) {
		r = g.rules()
		m.ingresses[g.Ingress] = r
	}
	r.round = m.round
	return r
}

// isOther says whether the Service is not what it was.
func (m *memory) isOther(b namedBackend) bool {
	is, _ := m.backend(b.name)
	return is != b.was
}

// forgetIngresses drops those that are not in use any more.
func (m *memory) forgetIngresses() {
	maps.DeleteFunc(m.ingresses, func(_ *networkingv1.Ingress, r *ingressRules) bool { return r.round != m.round })
}
