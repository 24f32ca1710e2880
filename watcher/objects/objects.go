// Package objects holds the typed Kubernetes inputs of Sallyport, and reads and writes them as ordinary manifests.
package objects

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Objects are all inputs, one Cluster for each source, in the order of the configuration.
type Objects []Cluster

// A Cluster is what one source (an API server, a folder of manifests) holds. The objects belong to the source's cache
// and must not be modified.
type Cluster struct {
	Name           string // as in the configuration's clusters list; empty if there is only one
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	Nodes          []*corev1.Node
	Namespaces     []*corev1.Namespace
	Ingresses      []*networkingv1.Ingress
	IngressClasses []*networkingv1.IngressClass
}
