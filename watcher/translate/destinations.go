package translate

import (
	"math"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"sallyport/watcher/model"
)

// A family is that of an address.
type family int

const (
	ipv4 family = iota
	ipv6
	families
)

// destinations are where a service port's traffic goes, and why it may go nowhere.
type destinations struct {
	list       []model.Destination
	noNodePort bool // node ports are needed, and there is none
	onlyIPv6   bool // there are usable endpoints, all of them IPv6, which is not served
}

// destinations computes where this edge sends the connections of a service port: its usable endpoints, seen through
// the reach. The families have nothing to do with each other, as on the nodes, where each has a kube-proxy of its own.
func (s *service) destinations(p *model.ServicePort) destinations {
	all := byFamily(p.Endpoints)
	all[ipv4] = usable(all[ipv4])
	if all[ipv6] = usable(all[ipv6]); !s.o.IPv6 {
		return s.through(p, [families][]model.Endpoint{all[ipv4]}, len(all[ipv4]) == 0 && len(all[ipv6]) > 0)
	}
	return s.through(p, all, false)
}

// through sends to endpoints of each family by the reach.
func (s *service) through(p *model.ServicePort, endpoints [families][]model.Endpoint, onlyIPv6 bool) destinations {
	d := destinations{onlyIPv6: onlyIPv6}
	if s.o.Reach == model.ReachNodes {
		d.noNodePort = p.NodePort == 0
		d.list = slices.Concat(s.byNodes(endpoints[ipv4], ipv4, p.NodePort), s.byNodes(endpoints[ipv6], ipv6, p.NodePort))
		return d
	}
	v4, direct4 := s.byEndpoint(endpoints[ipv4], ipv4, p.NodePort)
	v6, direct6 := s.byEndpoint(endpoints[ipv6], ipv6, p.NodePort)
	d.list = append(v4, v6...)
	d.noNodePort = p.NodePort == 0 && direct4+direct6 == 0 && len(d.list) > 0
	return d
}

// byFamily splits endpoints, which are ordered by address.
func byFamily(all []model.Endpoint) [families][]model.Endpoint {
	first := slices.IndexFunc(all, func(e model.Endpoint) bool { return !e.Addr.Addr().Is4() })
	if first < 0 {
		return [families][]model.Endpoint{ipv4: all}
	}
	return [families][]model.Endpoint{ipv4: all[:first:first], ipv6: all[first:]}
}

// usable are the endpoints that take new connections: the ready ones, or, where none is ready, those that still serve while
// they terminate (KEP-1669).
func usable(all []model.Endpoint) []model.Endpoint {
	if ready := only(all, func(e *model.Endpoint) bool { return e.Ready }); len(ready) > 0 {
		return ready
	}
	return only(all, func(e *model.Endpoint) bool { return e.Serving && e.Terminating })
}

// only are those that are good. If all are, as nearly always, it is no copy.
func only[T any](all []T, good func(*T) bool) []T {
	first := 0
	for first < len(all) && good(&all[first]) {
		first++
	}
	if first == len(all) {
		return all
	}
	out := slices.Clone(all[:first])
	for i := first + 1; i < len(all); i++ {
		if good(&all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}

// prefer are those that are good, or all if none is.
func prefer[T any](all []T, good func(*T) bool) []T {
	if some := only(all, good); len(some) > 0 {
		return some
	}
	return all
}

// nearby are those of the usable endpoints that are hinted at for the edge's zone, if all have hints and any has this one, as
// kube-proxy does it on nodes (KEP-2433). externalTrafficPolicy Local knows no hints.
func (s *service) nearby(usable []model.Endpoint) []model.Endpoint {
	noHint := func(e model.Endpoint) bool { return !e.Hinted }
	if s.o.Zone == "" || s.result.Local || len(usable) == 0 || !usable[0].Ready || slices.ContainsFunc(usable, noHint) {
		return usable
	}
	return prefer(usable, func(e *model.Endpoint) bool { return e.HintedHere })
}

// byNodes sends to the node port on nodes, whose kube-proxies know the endpoints. With externalTrafficPolicy Local
// kube-proxy drops what reaches a node without endpoints, so those with some are sent to, and all of them.
func (s *service) byNodes(endpoints []model.Endpoint, f family, nodePort uint16) []model.Destination {
	switch {
	case nodePort == 0 || len(endpoints) == 0 || !s.has(f):
		return nil
	case !s.result.Local:
		return throughNodes(s.entriesFor(nodePort, f), f, nodePort)
	}
	var out []model.Destination
	for i := range endpoints {
		if n := s.node[endpoints[i].Node]; n.takes[f] {
			out = append(out, n.destination(f, nodePort, 1))
		}
	}
	return s.healthy(merge(out))
}

// apiFamily is how the Service API calls the families.
var apiFamily = [families]corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// has says whether nodes serve the Service in a family. Of a Service that has not been through an API server its endpoints tell.
func (s *service) has(f family) bool {
	return len(s.Spec.IPFamilies) == 0 || slices.Contains(s.Spec.IPFamilies, apiFamily[f])
}

// throughNodes sends to the node port on each of the nodes.
func throughNodes(nodes []nodeEntry, f family, nodePort uint16) []model.Destination {
	out := make([]model.Destination, len(nodes))
	for i := range nodes {
		out[i] = nodes[i].destination(f, nodePort, 0)
	}
	return out
}

func (n *nodeEntry) destination(f family, nodePort, weight uint16) model.Destination {
	return model.Destination{Addr: netip.AddrPortFrom(n.addr[f], nodePort), Reach: model.ReachNodes, Node: n.name, Weight: weight}
}

// merge orders destinations by address and makes one of those with the same, with their weights together. A weight of 1 is
// left out.
func merge(all []model.Destination) []model.Destination {
	slices.SortFunc(all, func(a, b model.Destination) int { return a.Addr.Compare(b.Addr) })
	out := all[:0]
	for _, d := range all {
		if n := len(out); n > 0 && out[n-1].Addr == d.Addr {
			out[n-1].Weight += min(d.Weight, math.MaxUint16-out[n-1].Weight)
		} else {
			out = append(out, d)
		}
	}
	for i := range out {
		if out[i].Weight == 1 {
			out[i].Weight = 0
		}
	}
	return out
}

// byEndpoint sends to each endpoint directly where its node's pods are reached, and through the node port of its own node
// where not. Endpoints on nodes that are to get no new traffic are for when there are no others. direct is how many are
// reached directly.
func (s *service) byEndpoint(endpoints []model.Endpoint, f family, nodePort uint16) (out []model.Destination, direct int) {
	endpoints = prefer(s.nearby(endpoints), func(e *model.Endpoint) bool { return !s.node[e.Node].leaving })
	out = make([]model.Destination, 0, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		if s.reachesPod(e, f) {
			direct++
		} else if nodePort != 0 {
			out = append(out, s.throughNode(e.Node, f, nodePort)...)
			continue
		}
		// Without a node port the endpoint's address is tried although the probe failed: it is the only way left.
		out = append(out, model.Destination{Addr: e.Addr, Reach: model.ReachPods, Node: e.Node, Weight: 1})
	}
	return s.healthy(merge(out)), direct
}

// reachesPod says whether the endpoint is sent to directly. One without a node is no pod of the cluster's networks, but
// a machine that someone wrote into an EndpointSlice: no node stands before it.
func (s *service) reachesPod(e *model.Endpoint, f family) bool {
	return s.o.Reach == model.ReachPods || e.Node == "" || s.node[e.Node].pods[f]
}

// throughNode sends to the node port of one node, or, if that takes none, of others: their kube-proxies know the way,
// except with externalTrafficPolicy Local.
func (s *service) throughNode(node string, f family, nodePort uint16) []model.Destination {
	if !s.has(f) {
		return nil
	}
	if n := s.node[node]; n.takes[f] {
		return []model.Destination{n.destination(f, nodePort, 1)}
	}
	if s.result.Local {
		return nil
	}
	return throughNodes(s.entriesFor(nodePort, f), f, nodePort)
}

// healthy leaves out nodes that say that they have no endpoints of a Service with externalTrafficPolicy Local, unless all say
// so: kube-proxy drops what reaches such a node, and may know before the API server does.
func (s *service) healthy(all []model.Destination) []model.Destination {
	if s.result.HealthCheckNodePort == 0 || s.o.NodeHealthy == nil {
		return all
	}
	return prefer(all, func(d *model.Destination) bool { return d.Reach == model.ReachPods || s.nodeHealthy(d.Node) })
}

// nodeHealthy asks a node, once for all ports of the Service, and takes note of the answer.
func (s *service) nodeHealthy(name string) bool {
	healthy, asked := s.told[name]
	if !asked {
		node := model.ObjectRef{Cluster: s.cluster, Kind: "Node", Name: name}
		healthy = s.o.NodeHealthy(node, s.result.HealthCheckNodePort)
		s.result.asked = append(s.result.asked, healthAnswer{node, healthy})
		if s.told == nil {
			s.told = map[string]bool{}
		}
		s.told[name] = healthy
	}
	return healthy
}
