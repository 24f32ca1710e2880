package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/lb"
	"sallyport/watcher/model"
)

// userspace is the l4.dataplane that has no rules.
const userspace = "userspace"

// A connection is the target of tcp:// and udp://.
type connection struct {
	protocol model.Protocol
	to       netip.AddrPort
}

// String gives "tcp://192.0.2.10:443".
func (c connection) String() string {
	return strings.ToLower(string(c.protocol)) + "://" + c.to.String()
}

func (c connection) explain(e *explainer) error {
	e.connection(c)
	return nil
}

// connection says what takes a connection, in the order in which the edge looks: VIPs, its own addresses, and then what is
// known of the address otherwise.
func (e *explainer) connection(c connection) {
	addr := c.to.Addr()
	switch s := e.holder(addr); {
	case s != nil:
		e.atVIP(c, s)
	case e.isOwn(addr):
		e.atEdge(c)
	default:
		e.elsewhere(c)
	}
}

// holder is the Service that has the VIP, or nil.
func (e *explainer) holder(addr netip.Addr) *model.Service {
	i := slices.IndexFunc(e.s.Services, func(s model.Service) bool { return slices.Contains(s.VIPs, addr) })
	if i < 0 || e.isTaken(&e.s.Services[i], addr) {
		return nil
	}
	return &e.s.Services[i]
}

// isTaken says whether this edge refuses the Service a VIP that it was given, as the address is someone else's: only the
// Problem tells.
func (e *explainer) isTaken(s *model.Service, vip netip.Addr) bool {
	return slices.ContainsFunc(e.o.Problems, func(p model.Problem) bool {
		return p.Object == s.Ref && p.Reason == model.ReasonAddressTaken && strings.HasPrefix(p.Message, vip.String()+" ")
	})
}

// servesFamily says whether VIPs of the address's family are served.
func (e *explainer) servesFamily(vip netip.Addr) bool { return vip.Is4() || e.o.Dataplane == userspace }

// isOwn says whether the address is the edge's. Where its addresses are not known, any is that is nothing else.
func (e *explainer) isOwn(addr netip.Addr) bool {
	if e.holder(addr) != nil {
		return false
	}
	if len(e.o.EdgeAddresses) == 0 {
		return len(e.known(addr)) == 0
	}
	return addr.IsLoopback() || slices.Contains(e.o.EdgeAddresses, addr)
}

// atVIP explains a connection to a VIP, of which only the ports of its Service are served.
func (e *explainer) atVIP(c connection, s *model.Service) {
	e.concerns(s.Ref)
	e.step("address", fmt.Sprintf("%v is a VIP of %v", c.to.Addr(), s.Ref))
	p := s.Port(c.to.Port(), c.protocol)
	switch {
	case !e.servesFamily(c.to.Addr()):
		e.conclude(None, "IPv6 VIPs are not served by the kernel dataplane")
		e.hint("ask for an IPv4 address")
	case p == nil && e.o.Dataplane == userspace: // where a VIP is an address like others, and not guarded
		e.hint(fmt.Sprintf("%v has %s", s.Ref, list(portNames(s), "no port that is served")))
		e.atEdge(c)
	case p == nil:
		e.step("chain", "filter SALLY-INPUT, SALLY-GUARD")
		e.conclude(Refused, fmt.Sprintf("%v has no port %d/%s, and nothing else is served at a VIP", s.Ref, c.to.Port(), c.protocol))
		e.hint(fmt.Sprintf("it has %s", list(portNames(s), "no port that is served")))
	default:
		e.forward(s, p, fmt.Sprintf("VIP %v", c.to), "SALLY-VIP")
	}
}

func portNames(s *model.Service) []string {
	var out []string
	for i := range s.Ports {
		out = append(out, portName(&s.Ports[i]))
	}
	return out
}

// chain names the chains of the nat table that a packet takes, for who reads iptables-save.
func (e *explainer) chain(chains ...string) string {
	if e.o.Dataplane == userspace {
		return "none: connections are taken in user space"
	}
	return "nat SALLY-SERVICES, " + strings.Join(chains, ", ")
}

// forward says where a service port's connections go, and concludes.
func (e *explainer) forward(s *model.Service, p *model.ServicePort, what string, chains ...string) {
	e.step("port", fmt.Sprintf("%s is %v port %s", what, s.Ref, portName(p)))
	e.step("chain", e.chain(chains...))
	b := e.backend(s, p)
	e.out.Backends = []Backend{b}
	if len(b.Destinations) == 0 {
		e.conclude(Refused, fmt.Sprintf("%v port %s has nothing that it could be sent to: the connection is refused", s.Ref, portName(p)))
		return
	}
	e.conclude(Served, fmt.Sprintf("%s leads to %v port %s, %s", what, s.Ref, portName(p), count(len(b.Destinations), "destination")))
}

// forwardNodePort is forward at the service port's NodePort.
func (e *explainer) forwardNodePort(s *model.Service, p *model.ServicePort) {
	e.forward(s, p, fmt.Sprintf("NodePort %d", p.NodePort), "SALLY-NODEPORTS", "SALLY-"+string(p.Protocol))
}

// atEdge explains a connection to an address of the edge itself: NodePorts come first, as the rules do.
func (e *explainer) atEdge(c connection) {
	addr, port := c.to.Addr(), c.to.Port()
	e.step("address", fmt.Sprintf("%v is an address of this edge", addr))
	s, p := e.nodePort(c.protocol, port)
	if s != nil {
		why := e.noNodePorts(addr)
		if why == "" {
			e.forwardNodePort(s, p)
			return
		}
		e.concerns(s.Ref)
		e.hint(fmt.Sprintf("%d is the NodePort of %v port %s, but %s", port, s.Ref, portName(p), why))
	}
	if what := e.listener(c); what != "" {
		e.step("listener", what)
		e.conclude(Served, fmt.Sprintf("the edge itself listens on port %d: %s", port, what))
		e.tell(func(x model.Problem) bool {
			return x.Reason == model.ReasonPortConflict && strings.Contains(x.Message, fmt.Sprintf(" %d/", port))
		})
		return
	}
	e.conclude(None, fmt.Sprintf("Sallyport serves nothing on port %d/%s of this edge", port, c.protocol))
	if c.protocol == model.TCP && (port == e.o.HTTPPort || port == e.o.HTTPSPort) {
		e.hint(fmt.Sprintf("L7 serves that port at other addresses of this edge: %v (l7.addresses)", e.o.L7Addresses))
	}
	if s == nil {
		e.hint("no Service has it as nodePort; another program of this machine may listen there: ss -lntup")
	}
}

// nodePort is the service port that has the NodePort, or nil.
func (e *explainer) nodePort(protocol model.Protocol, port uint16) (*model.Service, *model.ServicePort) {
	for i := range e.s.Services {
		s := &e.s.Services[i]
		for k := range s.Ports {
			if s.Ports[k].NodePort == port && s.Ports[k].Protocol == protocol {
				return s, &s.Ports[k]
			}
		}
	}
	return nil, nil
}

// noNodePorts says why an address of the edge serves no NodePorts, or is empty.
func (e *explainer) noNodePorts(addr netip.Addr) string {
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	switch {
	case e.o.Dataplane != userspace && addr.IsLoopback():
		return "NodePorts are not served at loopback addresses"
	case e.o.Dataplane != userspace && !addr.Is4():
		return "IPv6 is not served by the kernel dataplane"
	case len(e.o.NodePortAddresses) > 0 && !slices.ContainsFunc(e.o.NodePortAddresses, in):
		return fmt.Sprintf("%v is not in l4.nodePortAddresses", addr)
	}
	return ""
}

// listener is what of the edge itself listens on the port, or empty.
func (e *explainer) listener(c connection) string {
	port, l7 := c.to.Port(), e.servesL7(c.to.Addr())
	switch {
	case c.protocol != model.TCP:
		return ""
	case l7 && port == e.o.HTTPPort:
		return "L7 for http: host and path decide, as sallyport explain http://HOST/PATH says"
	case l7 && port == e.o.HTTPSPort:
		return "L7 for https: host and path decide, as sallyport explain https://HOST/PATH says"
	default:
		return e.o.ListenPorts[port]
	}
}

// servesL7 says whether L7 listens at an address of the edge.
func (e *explainer) servesL7(addr netip.Addr) bool {
	return len(e.o.L7Addresses) == 0 || slices.Contains(e.o.L7Addresses, addr)
}

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
		e.hint("a ClusterIP is served by kube-proxy inside of the cluster only: use the Service's NodePort or a VIP; sallyport explain service/NAMESPACE/NAME shows both")
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
