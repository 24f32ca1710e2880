package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"sallyport/watcher/model"
)

// An endpointSlice is an EndpointSlice with its addresses checked, once for all its ports.
type endpointSlice struct {
	ports     []discoveryv1.EndpointPort
	named     map[string][]discoveryv1.EndpointPort // ports by name; nil if there are few
	endpoints []model.Endpoint                      // without port; those with unusable addresses are left out
	headless  bool
}

// portsNamed returns the ports that may have the name.
func (s *endpointSlice) portsNamed(name string) []discoveryv1.EndpointPort {
	if s.named != nil {
		return s.named[name]
	}
	return s.ports
}

// byName is the index of a slice's ports, if it needs one.
func byName(ports []discoveryv1.EndpointPort) map[string][]discoveryv1.EndpointPort {
	if len(ports) <= model.FewPorts {
		return nil
	}
	named := make(map[string][]discoveryv1.EndpointPort, len(ports))
	for _, p := range ports {
		named[value(p.Name, "")] = append(named[value(p.Name, "")], p)
	}
	return named
}

// read reads the Service's EndpointSlices.
func (s *service) read(of []*discoveryv1.EndpointSlice) {
	for _, slice := range of { // in any order: endpoints are ordered for each service port
		_, headless := slice.Labels[corev1.IsHeadlessService]
		first := len(s.space)
		s.readEndpoints(slice)
		s.slices = append(s.slices, endpointSlice{slice.Ports, byName(slice.Ports), s.space[first:], headless})
	}
}

// readEndpoints reads the endpoints of a slice into s.space. Of the addresses of one endpoint only the first counts, as
// discovery/v1 Endpoint.addresses says.
func (s *service) readEndpoints(slice *discoveryv1.EndpointSlice) {
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		addr, why := s.destinationAddr(e.Addresses[0])
		if why == "" && addr.Is4() != (slice.AddressType == discoveryv1.AddressTypeIPv4) {
			why = "is not of addressType " + string(slice.AddressType)
		}
		if why != "" {
			s.result.problems = append(s.result.problems, problemOf(s.ref("EndpointSlice", slice), indexed("endpoints", i, ".addresses[0]"),
				model.ReasonInvalidField, "%q %s: the endpoint gets no traffic", e.Addresses[0], why))
			continue
		}
		m := modelEndpoint(e, addr)
		m.Hinted, m.HintedHere = s.hints(e.Hints)
		s.space = append(s.space, m)
	}
}

// hints says whether zones are hinted at, and whether that of the edge is among them. Without a zone nothing is.
func (n *network) hints(h *discoveryv1.EndpointHints) (any, here bool) {
	if n.o.Zone == "" || h == nil {
		return false, false
	}
	here = slices.ContainsFunc(h.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == n.o.Zone })
	return len(h.ForZones) > 0, here
}

// modelEndpoint resolves absent conditions as discovery/v1 EndpointConditions says.
func modelEndpoint(e *discoveryv1.Endpoint, addr netip.Addr) model.Endpoint {
	m := model.Endpoint{
		Addr:        netip.AddrPortFrom(addr, 0),
		Node:        value(e.NodeName, ""),
		Zone:        shown(value(e.Zone, "")),
		Ready:       value(e.Conditions.Ready, true),
		Serving:     value(e.Conditions.Serving, true),
		Terminating: value(e.Conditions.Terminating, false),
	}
	if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
		m.Pod = shown(e.TargetRef.Name)
	}
	return m
}

// shown is a name that the API server takes as it is, and that nothing is decided by, fit for the terminal of who asks: short,
// and without what moves the cursor or begins a new line.
func shown(name string) string {
	const most = 253 // metadata.name (RFC 1123 subdomain)
	name = brief(name, most)
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return strconv.QuoteToASCII(name)
		}
	}
	return name
}

// endpoints collects the endpoints of one service port from the slices of its Service: a slice's port belongs to the
// service port of the same name and protocol. An address that stands in several slices, as happens while the
// controller moves it, is taken once, in its best condition.
func endpoints(of []endpointSlice, headless bool, port string, protocol model.Protocol) []model.Endpoint {
	var all []model.Endpoint
	for i := range of {
		s := &of[i]
		if s.headless && !headless {
			continue // left from when the Service was headless
		}
		for _, p := range s.portsNamed(port) {
			number := value(p.Port, 0)
			if value(p.Name, "") != port || value(p.Protocol, corev1.ProtocolTCP) != corev1.Protocol(protocol) || !isPort(number) {
				continue
			}
			all = slices.Grow(all, len(s.endpoints))
			for _, e := range s.endpoints {
				e.Addr = netip.AddrPortFrom(e.Addr.Addr(), uint16(number))
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, compareEndpoints)
	return slices.CompactFunc(all, func(a, b model.Endpoint) bool { return a.Addr == b.Addr })
}

// compareEndpoints orders by address; of one address the best condition comes first.
func compareEndpoints(a, b model.Endpoint) int {
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c // as nearly always
	}
	return cmp.Or(better(a.Ready, b.Ready), better(a.Serving, b.Serving), better(b.Terminating, a.Terminating),
		cmp.Compare(a.Node, b.Node), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Zone, b.Zone),
		better(a.HintedHere, b.HintedHere), better(a.Hinted, b.Hinted))
}

// better orders true before false.
func better(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// destinationAddr reads an address that traffic would be sent to. why says what is wrong with it, or is empty.
// The API server refuses the same addresses (ValidateEndpointIP), but manifests and other API servers are not it, and
// the edge must not be made to connect to itself or its neighbours on the link by who can write an EndpointSlice.
func (n *network) destinationAddr(s string) (addr netip.Addr, why string) {
	addr, ok := parseAddr(s)
	switch {
	case addr.Zone() != "":
		return addr, "has a zone"
	case !ok:
		return addr, "is not an IP address"
	case addr.IsUnspecified() || addr.Is4() && addr.As4()[0] == 0:
		return addr, "is the unspecified address"
	case addr.IsLoopback() && !n.o.AllowLoopbackEndpoints:
		return addr, "is a loopback address"
	case addr.IsLinkLocalUnicast():
		return addr, "is a link-local address"
	case addr.IsMulticast():
		return addr, "is a multicast address"
	case addr.Is4() && addr.As4()[0] >= 240:
		return addr, "is a reserved or broadcast address"
	case slices.Contains(n.o.OwnAddresses, addr):
		return addr, "is an address of this edge"
	}
	return addr, ""
}

// value dereferences an optional field.
func value[T any](p *T, absent T) T {
	if p == nil {
		return absent
	}
	return *p
}

func isPort(n int32) bool { return n >= 1 && n <= 65535 }

// indexed gives the field path "list[i]" and the rest.
func indexed(list string, i int, rest string) string {
	return list + "[" + strconv.Itoa(i) + "]" + rest
}
