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
	Ref ObjectRef
	// Created is metadata.creationTimestamp: of two that want the same thing, the older one gets it.
	Created time.Time
	// LoadBalancer says that the Service is of type LoadBalancer and of our loadBalancerClass.
	LoadBalancer bool `json:",omitempty"`
	// RequestedVIPs are the addresses asked for, by spec.loadBalancerIP or annotation sallyport.io/load-balancer-ips.
	RequestedVIPs []netip.Addr `json:",omitempty"`
	// RequestField is the field or annotation that RequestedVIPs came from, for Problems.
	RequestField string `json:",omitempty"`
	// VIPs are the addresses given to the Service: the edge answers for each of them on every Port. Set by lb.
	VIPs  []netip.Addr `json:",omitempty"`
	Ports []ServicePort
}

// Port returns the service port with the number and protocol, or nil.
func (s *Service) Port(number uint16, p Protocol) *ServicePort {
	for i := range s.Ports {
		if s.Ports[i].Port == number && s.Ports[i].Protocol == p {
			return &s.Ports[i]
		}
	}
	return nil
}

// A ServicePort is one port of one Service: the unit of L4.
type ServicePort struct {
	Name     string `json:",omitempty"` // ServicePort.name; empty if the only one
	Protocol Protocol
	Port     uint16 // ServicePort.port: what a VIP listens on
	NodePort uint16 `json:",omitempty"` // ServicePort.nodePort, or 0
	// Endpoints are all endpoints known, whatever their conditions, ordered by address.
	Endpoints []Endpoint
	// Destinations are where this edge sends new connections: the usable Endpoints, seen through the reach, ordered
	// by address, without repeats. Empty means that a connection is refused.
	Destinations []Destination
}

// An Endpoint is a pod IP and port behind a service port, with the conditions of its EndpointSlice
// (discovery/v1 EndpointConditions, absent ones already resolved to their defaults).
type Endpoint struct {
	Addr        netip.AddrPort
	Node        string `json:",omitempty"` // nodeName
	Pod         string `json:",omitempty"` // targetRef name, when the target is a Pod
	Zone        string `json:",omitempty"`
	Ready       bool
	Serving     bool
	Terminating bool
}

// A Destination is an address that new connections are sent to.
type Destination struct {
	Addr  netip.AddrPort
	Reach Reach  // pods: Addr is an endpoint; nodes: Addr is InternalIP:nodePort of Node
	Node  string `json:",omitempty"`
}
