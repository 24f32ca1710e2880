package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/lb"
	"sallyport/watcher/model"
)

// elsewhere explains a connection to an address that the edge does not have.
func (e *explainer) elsewhere(c connection) {
	facts := e.known(c.to.Addr())
	for _, f := range facts {
		e.step("address", f.text)
		e.concerns(f.about...)
		if f.hint != "" {
			e.hint(f.hint)
		}
	}
	if len(facts) == 0 {
		e.conclude(None, fmt.Sprintf("%v is no address of this edge, nor a VIP", c.to.Addr()))
		e.hint("a ClusterIP is served by kube-proxy inside of the cluster, and here only with l4.clusterIPs: use the Service's NodePort or a VIP; sallyport explain service/NAMESPACE/NAME shows both")
		return
	}
	e.conclude(None, fmt.Sprintf("this edge does not serve %v: it is %s", c.to.Addr(), facts[0].text))
}

// A fact is what is known of an address that is not served.
type fact struct {
	text  string
	hint  string
	about []model.ObjectRef
}

// known is what the address is, if neither a VIP nor the edge's.
func (e *explainer) known(addr netip.Addr) []fact {
	return slices.Concat(e.poolFacts(addr), e.requestFacts(addr), e.statusFacts(addr), e.endpointFacts(addr), e.nodeFacts(addr))
}

func (e *explainer) poolFacts(addr netip.Addr) []fact {
	i := slices.IndexFunc(e.o.Pools, func(p lb.Pool) bool { return p.Contains(addr) })
	if i < 0 {
		return nil
	}
	return []fact{{text: fmt.Sprintf("an address of pool %s that no Service holds", e.o.Pools[i].Name),
		hint: fmt.Sprintf("a Service of type LoadBalancer gets it by annotation sallyport.io/load-balancer-ips: %q", addr)}}
}

func (e *explainer) requestFacts(addr netip.Addr) (out []fact) {
	for i := range e.s.Services {
		if s := &e.s.Services[i]; slices.Contains(s.RequestedVIPs, addr) {
			out = append(out, fact{text: fmt.Sprintf("asked for by %v, which was not given it", s.Ref), about: []model.ObjectRef{s.Ref}})
		}
	}
	return out
}

func (e *explainer) statusFacts(addr netip.Addr) (out []fact) {
	for _, st := range e.s.Statuses {
		if slices.ContainsFunc(st.Addresses, func(a model.StatusAddress) bool { return a.IP == addr }) {
			out = append(out, fact{text: fmt.Sprintf("in status.loadBalancer of %v", st.Ref), about: []model.ObjectRef{st.Ref}})
		}
	}
	return out
}

// endpointFacts says whether the address is a pod's.
func (e *explainer) endpointFacts(addr netip.Addr) []fact {
	var services []string
	var about []model.ObjectRef
	pod := "an endpoint"
	for i := range e.s.Services {
		s := &e.s.Services[i]
		for _, p := range s.Ports {
			k := slices.IndexFunc(p.Endpoints, func(x model.Endpoint) bool { return x.Addr.Addr() == addr })
			if k >= 0 && !slices.Contains(about, s.Ref) {
				pod = "an endpoint (pod " + cmp.Or(p.Endpoints[k].Pod, "unknown") + ")"
				services, about = append(services, s.Ref.String()), append(about, s.Ref)
			}
		}
	}
	if len(about) == 0 {
		return nil
	}
	return []fact{{text: pod + " of " + few(services), about: about,
		hint: "clients do not reach pods through this edge: use a VIP, a NodePort or a route of the Service"}}
}

// nodeFacts says whether the address is a node's, or of a node's pod network.
func (e *explainer) nodeFacts(addr netip.Addr) []fact {
	for i := range e.s.Nodes {
		n := &e.s.Nodes[i]
		if slices.Contains(n.InternalIPs, addr) {
			return []fact{{text: fmt.Sprintf("the InternalIP of %v", n.Ref), about: []model.ObjectRef{n.Ref},
				hint: "what is sent to a node does not pass this edge; NodePorts are served at the edge's own addresses"}}
		}
		if slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return []fact{{text: fmt.Sprintf("of the pod network of %v", n.Ref), about: []model.ObjectRef{n.Ref},
				hint: "clients do not reach pods through this edge: use a VIP, a NodePort or a route of the Service"}}
		}
	}
	return nil
}
