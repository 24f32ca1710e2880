package lb

import (
	"fmt"
	"net/netip"
	"slices"

	"sallyport/watcher/model"
)

// A claim is a service port at an address.
type claim struct {
	addr     netip.Addr
	protocol model.Protocol
	port     uint16
}

// explainConflicts records which service ports an older Service has the address, protocol and port of. VIPs are nobody else's
// VIPs, but anyone may name one in spec.externalIPs, where the configuration allows it, and clusters may have the same
// ClusterIPs. Dataplanes decide in the same way, port by port.
func (a *assigner) explainConflicts() {
	contested := contestedAddresses(a.out.Services)
	if len(contested) == 0 {
		return
	}
	var rivals []*model.Service
	for i := range a.out.Services {
		if s := &a.out.Services[i]; slices.ContainsFunc(addressesOf(s), func(addr netip.Addr) bool { return contested[addr] }) {
			rivals = append(rivals, s)
		}
	}
	slices.SortFunc(rivals, byAge)
	taken := map[claim]model.ObjectRef{}
	for _, s := range rivals {
		var seen []netip.Addr
		for _, addr := range addressesOf(s) {
			if contested[addr] && !slices.Contains(seen, addr) {
				seen = append(seen, addr)
				a.take(s, addr, taken)
			}
		}
	}
}

// take claims the ports of a Service at an address, and tells which of them it does not get, once for all.
func (a *assigner) take(s *model.Service, addr netip.Addr, taken map[claim]model.ObjectRef) {
	lost, first := 0, ""
	for i := range s.Ports {
		c := claim{addr, s.Ports[i].Protocol, s.Ports[i].Port}
		holder, conflict := taken[c]
		switch {
		case !conflict:
			taken[c] = s.Ref
		case lost == 0:
			first = fmt.Sprintf("%d/%s is %v's", c.port, c.protocol, holder)
			fallthrough
		default:
			lost++
		}
	}
	if lost > 0 {
		a.problem(s, fieldOf(s, addr), model.ReasonPortConflict,
			"%v is not served on %d of %d ports, which older Services have there (%s): choose another address or other ports", addr, lost, len(s.Ports), first)
	}
}

// contestedAddresses are those that more than one Service has.
func contestedAddresses(services []model.Service) map[netip.Addr]bool {
	contested := map[netip.Addr]bool{}
	if !slices.ContainsFunc(services, func(s model.Service) bool { return len(s.ExternalIPs)+len(s.ClusterIPs) > 0 }) {
		return contested // VIPs are given to one Service each
	}
	holder := make(map[netip.Addr]int, len(services))
	for i := range services {
		for _, addr := range addressesOf(&services[i]) {
			if h, held := holder[addr]; held && h != i {
				contested[addr] = true
			}
			holder[addr] = i
		}
	}
	return contested
}

// addressesOf are all addresses of a Service.
func addressesOf(s *model.Service) []netip.Addr {
	if len(s.ExternalIPs)+len(s.ClusterIPs) == 0 {
		return s.VIPs
	}
	return slices.Concat(s.VIPs, s.ExternalIPs, s.ClusterIPs)
}

// fieldOf is where the Service asks for the address.
func fieldOf(s *model.Service, addr netip.Addr) string {
	switch {
	case slices.Contains(s.VIPs, addr):
		return s.RequestField
	case slices.Contains(s.ExternalIPs, addr):
		return "spec.externalIPs"
	default:
		return "spec.clusterIPs"
	}
}
