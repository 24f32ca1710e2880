package model

import (
	"net/netip"
	"slices"
	"time"
)

// A Protocol is a transport protocol, spelt as in the Service API.
type Protocol string

// The protocols of core/v1 ServicePort.protocol that are served.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// A Service is a Kubernetes Service with what it takes to send it traffic.
type Service struct {
	Ref ObjectRef `json:"ref"`
	// Created is metadata.creationTimestamp: of two that want the same thing, the older one gets it.
	Created time.Time `json:"created"`
	// LoadBalancer says that the Service is of type LoadBalancer and of our loadBalancerClass.
	LoadBalancer bool `json:"loadBalancer,omitempty"`
	// RequestedVIPs are the addresses asked for, by spec.loadBalancerIP or annotation sallyport.io/load-balancer-ips.
	RequestedVIPs []netip.Addr `json:"requestedVIPs,omitempty"`
	// RequestField is the field or annotation that RequestedVIPs came from, for Problems.
	RequestField string `json:"requestField,omitempty"`
	// VIPs are the addresses given to the Service: the edge answers for each of them on every Port. Set by lb.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// ExternalIPs are those of spec.externalIPs that the configuration allows (l4.externalIPs). The edge answers for them as
	// it does for VIPs; SourceRanges do not apply to them.
	ExternalIPs []netip.Addr `json:"externalIPs,omitempty"`
	// ClusterIPs are those of spec.clusterIPs, if the configuration has them served (l4.clusterIPs). They are not addresses of
	// the edge: other machines route them to it.
	ClusterIPs []netip.Addr `json:"clusterIPs,omitempty"`
	// Local says that externalTrafficPolicy is Local.
	Local bool `json:"local,omitempty"`
	// HealthCheckNodePort is where nodes tell whether they have endpoints, if Local; or 0.
	HealthCheckNodePort uint16 `json:"healthCheckNodePort,omitempty"`
	// SourceRanges limits who may connect to VIPs, and with l4.sourceRangesOnNodePorts to NodePorts; nil lets everyone in.
	SourceRanges *SourceRanges `json:"sourceRanges,omitempty"`
	// Affinity keeps a client with its endpoint (sessionAffinity ClientIP); nil spreads each connection anew.
	Affinity *Affinity `json:"affinity,omitempty"`
	// Limits protects the Service's endpoints from too many connections; nil is no limit.
	Limits *Limits `json:"limits,omitempty"`
	// ProxyProtocol is the version of the PROXY protocol spoken to endpoints, 1 or 2, or 0 for none. Only the userspace
	// dataplane can.
	ProxyProtocol uint8         `json:"proxyProtocol,omitempty"`
	Ports         []ServicePort `json:"ports"`

	index map[portKey]int // into Ports; nil if there are few, or IndexPorts was not called
}

// SourceRanges are the networks that may connect (loadBalancerSourceRanges).
type SourceRanges struct {
	// Prefixes are masked, ordered, and disjoint. A family that has none is closed: who restricts a Service in one family
	// does not expect the other one to be open.
	Prefixes []netip.Prefix `json:"prefixes"`
}

// Affinity is sessionAffinity ClientIP.
type Affinity struct {
	// Timeout is sessionAffinityConfig.clientIP.timeoutSeconds, from the last new connection of a client.
	Timeout time.Duration `json:"timeout"`
	// Exact asks for the timeout to be kept to, and for a client to keep its endpoint while others come and go (annotation
	// sallyport.io/session-affinity: timeout). Otherwise the client's address alone decides, without any state.
	Exact bool `json:"exact,omitempty"`
}

// Limits are what the annotations sallyport.io/limit-* ask for; 0 is no limit. A client is an address, or in IPv6 its /64. What
// exceeds a limit is dropped. They hold for all ports and addresses of the Service together, and for each edge apart.
type Limits struct {
	NewPerSecond uint32 `json:"newPerSecond,omitempty"` // new connections of a client a second; a burst may be as many
	PerClient    uint32 `json:"perClient,omitempty"`    // connections of a client at one time
	Total        uint32 `json:"total,omitempty"`        // connections at one time
}

// FewPorts is how many ports are found quickly one after the other. Nearly all Services have no more.
const FewPorts = 16

type portKey struct {
	number   uint16
	protocol Protocol
}

// IndexPorts makes Port quick for a Service with many ports. It is called when Ports is complete: they do not change
// places afterwards.
func (s *Service) IndexPorts() {
	if len(s.Ports) <= FewPorts {
		return
	}
	s.index = make(map[portKey]int, len(s.Ports))
	for i := range s.Ports {
		s.index[portKey{s.Ports[i].Port, s.Ports[i].Protocol}] = i
	}
}

// Port returns the service port with the number and protocol, or nil.
func (s *Service) Port(number uint16, p Protocol) *ServicePort {
	if s.index != nil {
		if i, found := s.index[portKey{number, p}]; found {
			return &s.Ports[i]
		}
		return nil
	}
	for i := range s.Ports {
		if s.Ports[i].Port == number && s.Ports[i].Protocol == p {
			return &s.Ports[i]
		}
	}
	return nil
}

// A ServicePort is one port of one Service: the unit of L4.
type ServicePort struct {
	Name     string   `json:"name,omitempty"` // ServicePort.name; empty if the only one
	Protocol Protocol `json:"protocol"`
	Port     uint16   `json:"port"`               // ServicePort.port: what a VIP listens on
	NodePort uint16   `json:"nodePort,omitempty"` // ServicePort.nodePort, or 0
	// Endpoints are all endpoints known, whatever their conditions, ordered by address.
	Endpoints []Endpoint `json:"endpoints"`
	// Destinations are where this edge sends new connections: the usable Endpoints, seen through the reach, ordered
	// by address, without repeats, of both families. Empty means that a connection is refused. A connection goes to one of
	// its own family.
	Destinations []Destination `json:"destinations"`
}

// Preferred are the Destinations to use where the client's family does not matter: those of IPv4, or else of IPv6. Of an
// endpoint in both families it has one.
func (p *ServicePort) Preferred() []Destination {
	v4, _ := slices.BinarySearchFunc(p.Destinations, 4, func(d Destination, _ int) int {
		if d.Addr.Addr().Is4() {
			return -1
		}
		return 1
	})
	if v4 > 0 {
		return p.Destinations[:v4]
	}
	return p.Destinations
}

// An Endpoint is a pod IP and port behind a service port, with the conditions of its EndpointSlice
// (discovery/v1 EndpointConditions, absent ones already resolved to their defaults).
type Endpoint struct {
	Addr        netip.AddrPort `json:"addr"`
	Node        string         `json:"node,omitempty"` // nodeName
	Pod         string         `json:"pod,omitempty"`  // targetRef name, when the target is a Pod
	Zone        string         `json:"zone,omitempty"`
	Ready       bool           `json:"ready"`
	Serving     bool           `json:"serving"`
	Terminating bool           `json:"terminating"`
	// Hinted says that topology hints name zones for the endpoint, and HintedHere that the edge's is among them (discovery/v1
	// EndpointHints.forZones). Neither is set if the edge has no zone.
	Hinted     bool `json:"hinted,omitempty"`
	HintedHere bool `json:"hintedHere,omitempty"`
}

// A Destination is an address that new connections are sent to.
type Destination struct {
	Addr  netip.AddrPort `json:"addr"`
	Reach Reach          `json:"reach"` // pods: Addr is an endpoint; nodes: Addr is InternalIP:nodePort of Node
	Node  string         `json:"node,omitempty"`
	// Weight is its share of the connections, against the other destinations' weights: the endpoints behind it; 0 is 1.
	Weight uint16 `json:"weight,omitempty"`
}
