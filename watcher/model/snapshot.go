// Package model is Sallyport's vocabulary: the desired state of an edge as plain data.
//
// A Snapshot is built by watcher/translate, given its addresses by lb, published once through Store and never
// modified afterwards. Everything that changes while traffic flows (health, requests in flight, counters) lives
// elsewhere, in registries keyed by the identities defined here. Only the standard library is imported, so that
// every other package may depend on this one.
package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// A Snapshot is the whole desired state of an edge at one generation. All slices are in a total order that does
// not depend on map iteration or on arrival, so that equal inputs give equal snapshots.
type Snapshot struct {
	// Generation counts published snapshots, from 1. It is set by the publisher, not by translation.
	Generation uint64 `json:"generation"`
	// Services are all Services that may be sent traffic, ordered by Ref. Those without a NodePort or VIP are
	// here because a Route can name them.
	Services []Service `json:"services"`
	// Nodes are the Kubernetes nodes, ordered by Ref.
	Nodes []Node `json:"nodes"`
	// Routes are the HTTP routes, free of duplicates, ordered by Host, Path, Match.
	Routes []Route `json:"routes"`
	// Certificates are the TLS certificates that hosts present, ordered by Ref.
	Certificates []Certificate `json:"certificates"`
	// Statuses are the addresses that the API server shows for Services and Ingresses, ordered by Ref. They say what
	// there is, not what is wanted: that is in Services and Routes.
	Statuses []Status `json:"statuses"`
	// Stale says that a part of the objects is from a last-good file, because an API server cannot be reached: it is to be
	// served, and not to be written back.
	Stale bool `json:"stale"`
	// Problems are the objects and fields that could not be honoured, ordered by Object, Field, Reason.
	Problems []Problem `json:"problems"`
}

// Service returns the service named by ref, or nil.
func (s *Snapshot) Service(ref ObjectRef) *Service {
	i, found := slices.BinarySearchFunc(s.Services, ref, func(v Service, r ObjectRef) int { return v.Ref.Compare(r) })
	if !found {
		return nil
	}
	return &s.Services[i]
}

// Status returns the status of the object named by ref, or nil.
func (s *Snapshot) Status(ref ObjectRef) *Status {
	i, found := slices.BinarySearchFunc(s.Statuses, ref, func(v Status, r ObjectRef) int { return v.Ref.Compare(r) })
	if !found {
		return nil
	}
	return &s.Statuses[i]
}

// SortProblems brings Problems into their order and drops repeats. Whoever adds a Problem calls it once at the end.
func (s *Snapshot) SortProblems() {
	slices.SortFunc(s.Problems, Problem.Compare)
	s.Problems = slices.Compact(s.Problems)
}

// An ObjectRef is the identity of a Kubernetes object, including the cluster that it came from.
type ObjectRef struct {
	Cluster   string `json:"cluster,omitempty"`   // name of the cluster in the configuration's clusters list
	Kind      string `json:"kind"`                // Kubernetes kind, such as "Service"
	Namespace string `json:"namespace,omitempty"` // empty for cluster-scoped kinds
	Name      string `json:"name"`
}

// String gives "Kind namespace/name", preceded by "cluster:" where the cluster is named.
func (r ObjectRef) String() string {
	name := r.Name
	if r.Namespace != "" {
		name = r.Namespace + "/" + r.Name
	}
	if r.Cluster != "" {
		name = r.Cluster + ":" + name
	}
	return r.Kind + " " + name
}

// Compare orders by cluster, kind, namespace, name.
func (r ObjectRef) Compare(o ObjectRef) int {
	if c := cmp.Or(strings.Compare(r.Cluster, o.Cluster), strings.Compare(r.Kind, o.Kind)); c != 0 {
		return c
	}
	if c := strings.Compare(r.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(r.Name, o.Name)
}

// A Reach is how an edge gets to an endpoint.
type Reach string

// The reaches. ReachAuto is a setting only: a resolved Node.Reach or Destination.Reach is never auto.
const (
	ReachAuto  Reach = "auto"  // pods where a probe shows that they are routed, nodes elsewhere
	ReachPods  Reach = "pods"  // pod IP and target port, routed through the node's InternalIP
	ReachNodes Reach = "nodes" // a node's InternalIP and the service port's nodePort
)

// A Node is a Kubernetes node, as far as reaching its pods goes.
type Node struct {
	Ref         ObjectRef      `json:"ref"`
	InternalIPs []netip.Addr   `json:"internalIPs"` // status.addresses of type InternalIP
	PodCIDRs    []netip.Prefix `json:"podCIDRs"`    // spec.podCIDRs
	Ready       bool           `json:"ready"`       // status.conditions Ready is True
	// Leaving says that the node is to get no new traffic: it is being deleted, about to be, or its owner excludes it (label
	// node.kubernetes.io/exclude-from-external-load-balancers).
	Leaving bool   `json:"leaving,omitempty"`
	Zone    string `json:"zone,omitempty"` // label topology.kubernetes.io/zone
	Reach   Reach  `json:"reach"`          // how this edge reaches the node's pods: directly, if it does so in either family
}

// InternalIP returns the node's first InternalIP of the same family as like, and whether there is one.
func (n *Node) InternalIP(like netip.Addr) (netip.Addr, bool) {
	for _, a := range n.InternalIPs {
		if a.Is4() == like.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// A Store holds the published snapshot. The zero value is empty and ready for use.
type Store struct{ p atomic.Pointer[Snapshot] }

// Current returns the published snapshot, or nil before the first. It must not be modified.
func (s *Store) Current() *Snapshot { return s.p.Load() }

// Publish makes next the current snapshot. next must not be modified afterwards.
func (s *Store) Publish(next *Snapshot) { s.p.Store(next) }
