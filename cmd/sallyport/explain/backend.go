package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/watcher/model"
)

// backend explains a service port: which of its destinations connections go to, and which endpoints get none.
func (e *explainer) backend(s *model.Service, p *model.ServicePort, to []model.Destination) Backend {
	e.concerns(s.Ref)
	e.tell(func(x model.Problem) bool { return e.isSliceOf(x.Object, s.Ref) })
	b := Backend{Service: s.Ref.String(), Port: p.Port, Name: p.Name, Protocol: p.Protocol, NodePort: p.NodePort,
		VIPs: slices.Concat(s.VIPs, s.ExternalIPs), Destinations: make([]Destination, 0, len(to))}
	for _, d := range to {
		b.Destinations = append(b.Destinations, e.destination(s, p, d))
	}
	b.Unused = e.unused(s, p)
	e.explainNoDestination(s, p)
	return b
}

// isSliceOf says whether the object is an EndpointSlice that Kubernetes has named after the Service, and not after one with a
// longer name that begins alike.
func (e *explainer) isSliceOf(o, service model.ObjectRef) bool {
	named := func(after model.ObjectRef) bool {
		return o.Cluster == after.Cluster && o.Namespace == after.Namespace && strings.HasPrefix(o.Name, after.Name+"-")
	}
	return o.Kind == "EndpointSlice" && named(service) && !slices.ContainsFunc(e.s.Services, func(s model.Service) bool {
		return len(s.Ref.Name) > len(service.Name) && named(s.Ref)
	})
}

func (e *explainer) destination(s *model.Service, p *model.ServicePort, d model.Destination) Destination {
	out := Destination{Address: d.Addr, Reach: d.Reach, Node: d.Node, Weight: d.Weight}
	if d.Reach == model.ReachNodes {
		n := e.node(s.Ref.Cluster, d.Node)
		if n != nil {
			out.Zone = n.Zone
			e.concerns(n.Ref)
		}
		return out
	}
	i := slices.IndexFunc(p.Endpoints, func(x model.Endpoint) bool { return x.Addr == d.Addr })
	if i >= 0 {
		out.Pod, out.Zone = p.Endpoints[i].Pod, p.Endpoints[i].Zone
	}
	return out
}

// node is the node of that name, or nil.
func (e *explainer) node(cluster, name string) *model.Node {
	ref := model.ObjectRef{Cluster: cluster, Kind: "Node", Name: name}
	i, found := slices.BinarySearchFunc(e.s.Nodes, ref, func(n model.Node, r model.ObjectRef) int { return n.Ref.Compare(r) })
	if !found {
		return nil
	}
	return &e.s.Nodes[i]
}

// unused are the endpoints that get nothing, and why. Those of a family that another family stands in for are passed over.
func (e *explainer) unused(s *model.Service, p *model.ServicePort) []Endpoint {
	var out []Endpoint
	for _, x := range p.Endpoints {
		why := notUsable(p, x)
		if why == "" && !isUsed(s, p, x) {
			why = e.notReached(s, p, x)
		}
		if why != "" {
			out = append(out, Endpoint{x.Addr, why, x.Node, x.Pod, x.Zone})
		}
	}
	return out
}

// notUsable says why an endpoint takes no new connections, or is empty (KEP-1669).
func notUsable(p *model.ServicePort, x model.Endpoint) string {
	switch {
	case x.Ready:
		return ""
	case !x.Terminating:
		return "not ready"
	case !x.Serving:
		return "terminating, and does not serve any more"
	case slices.ContainsFunc(p.Endpoints, func(y model.Endpoint) bool { return y.Ready && sameFamily(x.Addr, y.Addr) }):
		return "terminating, and others are ready"
	}
	return ""
}

func sameFamily(a, b netip.AddrPort) bool { return a.Addr().Is4() == b.Addr().Is4() }

// isUsed says whether a usable endpoint gets connections: directly, or by way of a node, which with externalTrafficPolicy
// Local must be its own.
func isUsed(s *model.Service, p *model.ServicePort, x model.Endpoint) bool {
	return slices.ContainsFunc(p.Destinations, func(d model.Destination) bool {
		if d.Reach == model.ReachPods {
			return d.Addr == x.Addr
		}
		return sameFamily(d.Addr, x.Addr) && (!s.Local || d.Node == x.Node)
	})
}

// notReached says why an endpoint gets nothing although it is usable.
func (e *explainer) notReached(s *model.Service, p *model.ServicePort, x model.Endpoint) string {
	n := e.node(s.Ref.Cluster, x.Node)
	others := slices.ContainsFunc(p.Destinations, func(d model.Destination) bool { return sameFamily(d.Addr, x.Addr) })
	const byNodePort = "reached through node ports only, and "
	switch {
	case others && x.Hinted && !x.HintedHere && !s.Local:
		return "hinted at for other zones than that of the edge"
	case others && n != nil && n.Leaving:
		return "node " + x.Node + " is leaving or excluded, and others are not"
	case p.NodePort == 0:
		return "its pods are not reached directly, and the service port has no nodePort"
	case n == nil:
		return byNodePort + fmt.Sprintf("its node %q is unknown", x.Node)
	case !n.Ready:
		return byNodePort + "node " + x.Node + " is not Ready"
	case others && s.HealthCheckNodePort != 0 && !n.Leaving:
		return byNodePort + fmt.Sprintf("node %s says at its port %d that it has no endpoint (healthCheckNodePort)", x.Node, s.HealthCheckNodePort)
	default:
		return byNodePort + "node " + x.Node + " takes no traffic on them"
	}
}

// explainNoDestination gives the hint that is due where a service port has no destination.
func (e *explainer) explainNoDestination(s *model.Service, p *model.ServicePort) {
	switch {
	case len(p.Destinations) > 0:
	case len(p.Endpoints) == 0:
		e.hint(fmt.Sprintf("%v port %s has no endpoints: compare its selector and targetPort with the pods: kubectl -n %s get endpointslices -l kubernetes.io/service-name=%s",
			s.Ref, portName(p), s.Ref.Namespace, s.Ref.Name))
	case !slices.ContainsFunc(p.Endpoints, func(x model.Endpoint) bool { return x.Ready }):
		e.hint(fmt.Sprintf("%v port %s has endpoints, but none that takes connections: kubectl -n %s describe pods says why one is not ready",
			s.Ref, portName(p), s.Ref.Namespace))
	}
}

// portName gives "http (80/TCP)", or "80/TCP".
func portName(p *model.ServicePort) string {
	number := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
	if p.Name == "" {
		return number
	}
	return p.Name + " (" + number + ")"
}

// count gives "1 destination", "3 destinations".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// path gives a reference without its kind: "shop/web".
func path(r model.ObjectRef) string { return strings.TrimPrefix(r.String(), r.Kind+" ") }

// list gives "a, b, c", or what stands for none.
func list(items []string, none string) string { return cmp.Or(strings.Join(items, ", "), none) }
