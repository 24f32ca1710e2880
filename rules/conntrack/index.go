package conntrack

import (
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// numbers are the protocols as packets have them.
var numbers = map[model.Protocol]uint8{model.TCP: unix.IPPROTO_TCP, model.UDP: unix.IPPROTO_UDP, model.SCTP: unix.IPPROTO_SCTP}

// An index finds the service port that a flow belongs to, by the destination that its client sent to. It costs the same with
// any number of services. Only Reconcile may see services; the rest never changes.
type index struct {
	services  []model.Service
	local     []netip.Addr // where NodePorts are served, ordered
	ports     []*servicePort
	addresses map[destination]*servicePort // at VIPs, external IPs and cluster IPs
	nodePorts map[nodePort]*servicePort
}

type destination struct {
	addr     netip.AddrPort
	protocol uint8
}

type nodePort struct {
	number   uint16
	protocol uint8
}

// A servicePort is a service port as flows see it.
type servicePort struct {
	series  series
	account *account       // of the ledger, which alone uses it; nil until there is traffic
	service *model.Service // compared by age, while the index is made
	// destinations are those of UDP, ordered: other protocols keep their connections.
	destinations []model.Destination
}

// A series identifies a service port in metrics.
type series struct{ cluster, namespace, service, port, protocol string }

func newIndex(services []model.Service, local []netip.Addr) *index {
	x := &index{
		services:  services,
		local:     local,
		addresses: make(map[destination]*servicePort, len(services)),
		nodePorts: make(map[nodePort]*servicePort, len(services)),
	}
	for i := range services {
		for k := range services[i].Ports {
			x.add(&services[i], &services[i].Ports[k])
		}
	}
	for _, p := range x.ports {
		p.service = nil // not kept longer than its snapshot
	}
	return x
}

func (x *index) add(svc *model.Service, sp *model.ServicePort) {
	protocol := numbers[sp.Protocol]
	p := &servicePort{series: seriesOf(svc, sp), service: svc}
	if sp.Protocol == model.UDP {
		p.destinations = sp.Destinations
	}
	x.ports = append(x.ports, p)
	for _, list := range [...][]netip.Addr{svc.VIPs, svc.ExternalIPs, svc.ClusterIPs} {
		for _, a := range list {
			claim(x.addresses, destination{netip.AddrPortFrom(a, sp.Port), protocol}, p)
		}
	}
	if sp.NodePort != 0 {
		claim(x.nodePorts, nodePort{sp.NodePort, protocol}, p)
	}
}

// claim gives k to p, unless an older Service has it.
func claim[K comparable](m map[K]*servicePort, k K, p *servicePort) {
	if other := m[k]; other == nil || older(p.service, other.service) {
		m[k] = p
	}
}

func older(a, b *model.Service) bool {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c < 0
	}
	return a.Ref.Compare(b.Ref) < 0
}

func seriesOf(svc *model.Service, sp *model.ServicePort) series {
	port := sp.Name
	if port == "" {
		port = strconv.Itoa(int(sp.Port))
	}
	return series{svc.Ref.Cluster, svc.Ref.Namespace, svc.Ref.Name, port, string(sp.Protocol)}
}

// find returns the service port that is served at d, or nil.
func (x *index) find(d destination) *servicePort {
	if p := x.addresses[d]; p != nil {
		return p
	}
	p := x.nodePorts[nodePort{d.addr.Port(), d.protocol}]
	if p == nil || !x.isLocal(d.addr.Addr()) {
		return nil
	}
	return p
}

func (x *index) isLocal(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(x.local, a, netip.Addr.Compare)
	return found
}

// holds says whether the index is also that of other services, which is much quicker than to make it: most changes in a
// cluster are of endpoints, which matter here for UDP alone.
func (x *index) holds(services []model.Service, local []netip.Addr) bool {
	return slices.Equal(x.local, local) && slices.EqualFunc(x.services, services, sameService)
}

func sameService(a, b model.Service) bool {
	return a.Ref == b.Ref && a.Created.Equal(b.Created) && slices.Equal(a.VIPs, b.VIPs) &&
		slices.Equal(a.ExternalIPs, b.ExternalIPs) && slices.Equal(a.ClusterIPs, b.ClusterIPs) &&
		slices.EqualFunc(a.Ports, b.Ports, samePort)
}

func samePort(a, b model.ServicePort) bool {
	return a.Port == b.Port && a.NodePort == b.NodePort && a.Protocol == b.Protocol && a.Name == b.Name &&
		(a.Protocol != model.UDP || slices.EqualFunc(a.Destinations, b.Destinations, sameAddr))
}

func sameAddr(a, b model.Destination) bool { return a.Addr == b.Addr }
