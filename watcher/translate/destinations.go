package translate

import (
	"net/netip"
	"slices"

	"sallyport/watcher/model"
)

// destinations are where a service port's traffic goes, and why it may go nowhere.
type destinations struct {
	list       []model.Destination
	noNodePort bool // node ports are needed, and there is none
	onlyIPv6   bool // there are usable endpoints, none of them IPv4
}

// destinations computes where this edge sends the connections of a service port: its usable endpoints, seen through
// the reach. They are IPv4: the dataplanes do not serve IPv6 yet, and an endpoint in both families must not count
// twice. local is externalTrafficPolicy Local.
func (t *translator) destinations(p *model.ServicePort, local bool) destinations {
	v4, others := usable(p.Endpoints)
	d := destinations{onlyIPv6: others && len(v4) == 0}
	if t.o.Reach == model.ReachNodes {
		d.noNodePort = p.NodePort == 0
		d.list = t.byNodes(v4, p.NodePort, local)
	} else {
		d.list, d.noNodePort = t.byEndpoint(v4, p.NodePort, local)
	}
	return d
}

// usable are the IPv4 endpoints that take new connections, and whether there are others than IPv4: the ready ones, or,
// where none is ready, those that still serve while they terminate (KEP-1669).
func usable(all []model.Endpoint) (v4 []model.Endpoint, others bool) {
	anyReady := slices.ContainsFunc(all, func(e model.Endpoint) bool { return e.Ready })
	takes := func(e model.Endpoint) bool { return e.Ready || !anyReady && e.Serving && e.Terminating }
	refused := func(e model.Endpoint) bool { return !takes(e) || !e.Addr.Addr().Is4() }
	if !slices.ContainsFunc(all, refused) {
		return all, false // as nearly always: no copy
	}
	others = slices.ContainsFunc(all, func(e model.Endpoint) bool { return takes(e) && !e.Addr.Addr().Is4() })
	return slices.DeleteFunc(slices.Clone(all), refused), others
}

// byNodes sends to the node port on nodes, whose kube-proxies know the endpoints. With externalTrafficPolicy Local
// kube-proxy drops what reaches a node without endpoints, so those with some are sent to, and all of them.
func (t *translator) byNodes(endpoints []model.Endpoint, nodePort uint16, local bool) []model.Destination {
	if nodePort == 0 || len(endpoints) == 0 {
		return nil
	}
	if !local {
		return throughNodes(t.entriesFor(nodePort), nodePort)
	}
	with := make(map[string]bool, len(endpoints))
	for _, e := range endpoints {
		with[e.Node] = true
	}
	out := throughNodes(t.entries, nodePort)
	out = slices.DeleteFunc(out, func(d model.Destination) bool { return !with[d.Node] })
	slices.SortFunc(out, func(a, b model.Destination) int { return a.Addr.Compare(b.Addr) })
	return out
}

// throughNodes sends to the node port on each of the nodes.
func throughNodes(nodes []nodeEntry, nodePort uint16) []model.Destination {
	out := make([]model.Destination, len(nodes))
	for i, n := range nodes {
		out[i] = n.destination(nodePort)
	}
	return out
}

func (n nodeEntry) destination(nodePort uint16) model.Destination {
	return model.Destination{Addr: netip.AddrPortFrom(n.addr, nodePort), Reach: model.ReachNodes, Node: n.name}
}

// byEndpoint sends to each endpoint directly where its node's pods are reached, and through the node port of its own
// node where not. noNodePort says that no endpoint is reached directly and that there is no node port.
func (t *translator) byEndpoint(endpoints []model.Endpoint, nodePort uint16, local bool) (out []model.Destination, noNodePort bool) {
	out = make([]model.Destination, 0, len(endpoints))
	direct := 0
	for _, e := range endpoints {
		if t.reachesPod(e) {
			direct++
		} else if nodePort != 0 {
			out = append(out, t.throughNode(e.Node, nodePort, local)...)
			continue
		}
		// Without a node port the endpoint's address is tried although the probe failed: it is the only way left.
		out = append(out, model.Destination{Addr: e.Addr, Reach: model.ReachPods, Node: e.Node})
	}
	slices.SortFunc(out, func(a, b model.Destination) int { return a.Addr.Compare(b.Addr) })
	return slices.Compact(out), nodePort == 0 && direct == 0 && len(endpoints) > 0
}

// reachesPod says whether the endpoint is sent to directly. One without a node is no pod of the cluster's networks, but
// a machine that someone wrote into an EndpointSlice: no node stands before it.
func (t *translator) reachesPod(e model.Endpoint) bool {
	return t.o.Reach == model.ReachPods || e.Node == "" || t.node[e.Node].pods
}

// throughNode sends to the node port of one node, or, if that takes none, of others: their kube-proxies know the way,
// except with externalTrafficPolicy Local.
func (t *translator) throughNode(node string, nodePort uint16, local bool) []model.Destination {
	if n := t.node[node]; n.entry {
		return []model.Destination{n.destination(nodePort)}
	}
	if local {
		return nil
	}
	return throughNodes(t.entriesFor(nodePort), nodePort)
}
