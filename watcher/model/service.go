package model

import (
	"net/netip"
	"time"
)

// A Protocol is a transport protocol, spelt as in the Service API.
type Protocol string

// The protocols of core/v1 ServicePort.protocol that are served.
const (
	TCP Protocol = "TCP"
	UDP Protocol = "UDP"
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
	VIPs  []netip.Addr  `json:"vips,omitempty"`
	Ports []ServicePort `json:"ports"`

	index map[portKey]int // into Ports; nil if there are few, or IndexPorts was not called
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
	// by address, without repeats. Empty means that a connection is refused.
	Destinations []Destination `json:"destinations"`
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
}

// A Destination is an address that new connections are sent to.
type Destination struct {
	Addr  netip.AddrPort `json:"addr"`
	Reach Reach          `json:"reach"` // pods: Addr is an endpoint; nodes: Addr is InternalIP:nodePort of Node
	Node  string         `json:"node,omitempty"`
}
