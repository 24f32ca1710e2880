package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/watcher/model"
)

// userspace and nftables are values of l4.dataplane: the one has no rules, and the other none in chains that people look up.
const (
	userspace = "userspace"
	nftables  = "nftables"
)

// connection is the target of tcp://, udp:// and sctp://.
type connection struct {
	protocol model.Protocol
	to       netip.AddrPort
	from     netip.Addr // the client; invalid if it is not given
}

// String gives "tcp://192.0.2.10:443", or "tcp://192.0.2.10:443?from=198.51.100.7".
func (c connection) String() string {
	s := strings.ToLower(string(c.protocol)) + "://" + c.to.String()
	if c.from.IsValid() {
		s += "?from=" + c.from.String()
	}
	return s
}

func (c connection) explain(e *explainer) error {
	e.connection(c)
	return nil
}

// connection says what takes a connection, in the order in which the edge looks: addresses of Services, its own, and then what
// is known of the address otherwise.
func (e *explainer) connection(c connection) {
	addr := c.to.Addr()
	switch all := e.holders(addr); {
	case len(all) > 0:
		e.atService(c, all)
	case e.isOwn(addr):
		e.atEdge(c)
	default:
		e.elsewhere(c)
	}
}

// isOwn says whether the address is the edge's. Where its addresses are not known, any is that is nothing else.
func (e *explainer) isOwn(addr netip.Addr) bool {
	if len(e.holders(addr)) > 0 {
		return false
	}
	if len(e.o.EdgeAddresses) == 0 {
		return len(e.known(addr)) == 0
	}
	return addr.IsLoopback() || slices.Contains(e.o.EdgeAddresses, addr)
}

// chain names what of the rules a packet takes, for who reads iptables-save.
func (e *explainer) chain(chains ...string) string {
	switch e.o.Dataplane {
	case userspace:
		return "none: connections are taken in user space"
	case nftables:
		return "maps of nftables: nft list table ip sallyport, or ip6 sallyport"
	}
	return "nat SALLY-SERVICES, " + strings.Join(chains, ", ")
}

// An entry is where a connection comes to a service port.
type entry struct {
	connection
	what       string   // "VIP 192.0.2.10:443"
	restricted bool     // source ranges apply
	chains     []string // of the nat table
}

// forward says where a service port's connections go, and concludes.
func (e *explainer) forward(s *model.Service, p *model.ServicePort, at entry) {
	e.step("port", fmt.Sprintf("%s is %v port %s", at.what, s.Ref, portName(p)))
	e.step("chain", e.chain(at.chains...))
	keptOut := e.clients(s, at)
	b := e.backend(s, p, familyOf(p.Destinations, at.to.Addr()))
	if at.to.IsValid() {
		b.Unused = slices.DeleteFunc(b.Unused, func(x Endpoint) bool { return !sameFamily(x.Address, at.to) })
	}
	e.out.Backends = []Backend{b}
	switch {
	case keptOut != "":
		e.conclude(Dropped, keptOut)
	case len(b.Destinations) == 0:
		e.conclude(Refused, fmt.Sprintf("%v port %s has nothing that it could be sent to: the connection is refused", s.Ref, portName(p)))
		if len(p.Destinations) > 0 {
			e.hint("it has destinations of the other family alone, and a connection goes to one of its own: give the Service both (spec.ipFamilyPolicy: PreferDualStack)")
		}
	default:
		e.conclude(Served, fmt.Sprintf("%s leads to %v port %s, %s", at.what, s.Ref, portName(p), count(len(b.Destinations), "destination")))
	}
}

// familyOf are the destinations for who connects to an address, which are of its family. Of an address that is not known it
// is any.
func familyOf(all []model.Destination, addr netip.Addr) []model.Destination {
	if !addr.IsValid() {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(d model.Destination) bool { return d.Addr.Addr().Is4() != addr.Is4() })
}

// forwardNodePort is forward at the service port's NodePort.
func (e *explainer) forwardNodePort(c connection, s *model.Service, p *model.ServicePort) {
	e.forward(s, p, entry{c, fmt.Sprintf("NodePort %d", p.NodePort), e.o.SourceRangesOnNodePorts, []string{"SALLY-NODEPORTS", "SALLY-" + string(p.Protocol)}})
}

// atEdge explains a connection to an address of the edge itself: NodePorts come first, as the rules do.
func (e *explainer) atEdge(c connection) {
	addr, port := c.to.Addr(), c.to.Port()
	e.step("address", fmt.Sprintf("%v is an address of this edge", addr))
	s, p := e.nodePort(c.protocol, port)
	if s != nil {
		why := e.noNodePorts(addr)
		if why == "" {
			e.forwardNodePort(c, s, p)
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
