package translate

import (
	"net/netip"
	"slices"
	"strings"

	netutils "k8s.io/utils/net"

	"sallyport/watcher/model"
)

// LoadBalancerIPs is the annotation that asks for addresses, as a comma-separated list. It wins over the deprecated
// spec.loadBalancerIP, which holds only one.
const LoadBalancerIPs = "sallyport.io/load-balancer-ips"

// maxAddresses is how many addresses a Service may have in one field or annotation, which can hold 30,000: they are as many
// rules, and make a status that the API server does not take.
const maxAddresses = 64

// addresses reads what addresses the Service is served at beside NodePorts.
func (s *service) addresses() {
	if s.result.LoadBalancer {
		s.requestedVIPs()
	}
	s.externalIPs()
	if s.o.ClusterIPs && !isHeadless(s.Service) {
		s.clusterIPs()
	}
}

// requestedVIPs reads the addresses that the Service asks for.
func (s *service) requestedVIPs() {
	list := s.Annotations[LoadBalancerIPs]
	if strings.TrimSpace(list) == "" {
		if s.Spec.LoadBalancerIP != "" {
			s.request("spec.loadBalancerIP", s.Spec.LoadBalancerIP)
		}
		return
	}
	s.request(annotationField(LoadBalancerIPs), strings.Split(list, ",")...)
	if ip := s.Spec.LoadBalancerIP; ip != "" && !isOnly(s.result.RequestedVIPs, ip) {
		s.complain("spec.loadBalancerIP", model.ReasonInvalidField,
			"%q differs from annotation %s, which wins: remove one of them", ip, LoadBalancerIPs)
	}
}

// request adds the addresses given in a field.
func (s *service) request(field string, ips ...string) {
	b := s.result
	b.RequestField = field
	for _, ip := range s.bounded(field, ips) {
		ip = strings.TrimSpace(ip)
		addr, ok := parseAddr(ip)
		switch {
		case !ok:
			s.complain(field, model.ReasonInvalidField, "%q is not an IP address", ip)
		case !s.serves(addr):
			s.complain(field, model.ReasonUnsupported, "%v is not served: VIPs are IPv4 with this dataplane (l4.dataplane): ask for such an address", addr)
		case !slices.Contains(b.RequestedVIPs, addr):
			b.RequestedVIPs = append(b.RequestedVIPs, addr)
			s.explainFamily(field, addr)
		}
	}
}

// explainFamily records that connections to an address are refused, as endpoints of its family are none of the Service's.
func (s *service) explainFamily(field string, addr netip.Addr) {
	f := ipv4
	if !addr.Is4() {
		f = ipv6
	}
	if !s.has(f) {
		s.complain(field, model.ReasonUnsupported, "%v refuses connections: the Service is not of %s (spec.ipFamilies): use an address "+
			"of its family, or give it both (spec.ipFamilyPolicy: PreferDualStack)", addr, apiFamily[f])
	}
}

// bounded are as many addresses as a Service may have.
func (s *service) bounded(field string, ips []string) []string {
	if len(ips) <= maxAddresses {
		return ips
	}
	s.complain(field, model.ReasonUnsupported, "%d addresses are asked for, and a Service has %d at most: the others are left out", len(ips), maxAddresses)
	return ips[:maxAddresses]
}

// externalIPs reads those addresses of spec.externalIPs that the configuration allows.
func (s *service) externalIPs() {
	for i, ip := range s.bounded("spec.externalIPs", s.Spec.ExternalIPs) {
		addr, reason, why := s.externalIP(ip)
		switch {
		case why != "":
			s.complain(indexed("spec.externalIPs", i, ""), reason, "%q %s", ip, why)
		case !slices.Contains(s.result.ExternalIPs, addr):
			s.result.ExternalIPs = append(s.result.ExternalIPs, addr)
			s.explainFamily(indexed("spec.externalIPs", i, ""), addr)
		}
	}
}

// externalIP reads an address of spec.externalIPs. why says what keeps it from being served, or is empty.
func (s *service) externalIP(ip string) (_ netip.Addr, _ model.Reason, why string) {
	if len(s.o.ExternalIPs) == 0 {
		return netip.Addr{}, model.ReasonUnsupported, "is not served by this edge, whose l4.externalIPs allows none: " +
			"use type LoadBalancer, with the address in annotation " + LoadBalancerIPs
	}
	addr, why := s.destinationAddr(ip) // what is no address for an endpoint is none to be had by a Service, either
	switch {
	case why != "":
		return addr, model.ReasonInvalidField, why
	case isHeadless(s.Service):
		return addr, model.ReasonUnsupported, "is of a headless Service, which is served at no address: give it a cluster IP"
	case !s.serves(addr):
		return addr, model.ReasonUnsupported, "is not served: addresses are IPv4 with this dataplane (l4.dataplane)"
	case !slices.ContainsFunc(s.o.ExternalIPs, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return addr, model.ReasonUnsupported, "is in no network of l4.externalIPs: use an address of one, or have it added there"
	}
	return addr, "", ""
}

// clusterIPs reads spec.clusterIPs. Those of a family that is not served are passed over: the API server chooses families.
func (s *service) clusterIPs() {
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	for i, ip := range s.bounded("spec.clusterIPs", ips) {
		addr, why := s.destinationAddr(ip)
		if why != "" {
			s.complain(indexed("spec.clusterIPs", i, ""), model.ReasonInvalidField, "%q %s: it is not served", ip, why)
		} else if s.serves(addr) && !slices.Contains(s.result.ClusterIPs, addr) {
			s.result.ClusterIPs = append(s.result.ClusterIPs, addr)
		}
	}
}

// serves says whether the dataplane serves addresses of that family.
func (n *network) serves(a netip.Addr) bool { return a.Is4() || n.o.IPv6 }

// isOnly says whether ip is the one address in the list.
func isOnly(list []netip.Addr, ip string) bool {
	addr, ok := parseAddr(ip)
	return ok && len(list) == 1 && list[0] == addr
}

// parseAddr reads an address as Kubernetes does: octets with leading zeros are decimal numbers, and an IPv4 address in IPv6
// form is an IPv4 address. One with a zone is none.
func parseAddr(s string) (_ netip.Addr, ok bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		addr, ok = netip.AddrFromSlice(netutils.ParseIPSloppy(s))
		return addr.Unmap(), ok
	}
	return addr.Unmap(), addr.Zone() == ""
}
