package model

import "net/netip"

// A Status is status.loadBalancer of a Service or Ingress as the API server has it. There is one for each object that
// either is ours to write a status to, or has one that we may have written.
type Status struct {
	Ref ObjectRef `json:"ref"`
	// Served says that the object is of our class and its status is ours to write: a Service of type LoadBalancer, or an
	// Ingress with at least one route.
	Served bool `json:"served"`
	// Marked says that Sallyport wrote the addresses: a Service has StatusCondition. An Ingress has no conditions and is
	// never Marked.
	Marked bool `json:"marked"`
	// Addresses are those of status.loadBalancer.ingress, in its order.
	Addresses []StatusAddress `json:"addresses,omitempty"`
}

// StatusCondition is the type of the condition in a Service's status that says that status.loadBalancer is Sallyport's.
const StatusCondition = "sallyport.io/LoadBalancer"

// A StatusAddress is an entry of status.loadBalancer.ingress.
type StatusAddress struct {
	IP       netip.Addr `json:"ip"`
	Hostname string     `json:"hostname,omitempty"`
	IPMode   string     `json:"ipMode,omitempty"` // VIP, Proxy (core/v1 LoadBalancerIPMode), or empty if not given
}
