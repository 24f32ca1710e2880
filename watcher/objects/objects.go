// Package objects holds the typed Kubernetes inputs of Sallyport, and reads and writes them as ordinary manifests.
package objects

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	// Secrets are those of type kubernetes.io/tls that the source may read and that are wanted.
	Secrets []*corev1.Secret
	// Denied is what the source may not read or the API server does not have, ordered.
	Denied []Denial
	// Conflict says, for people, why the API server's objects are not taken, if they are not: it is of another cluster.
	Conflict string
	// Stale says that the objects are from a last-good file.
	Stale bool
}

// A Denial is an answer of the API server that keeps a kind, or one Secret, from being read.
type Denial struct {
	Kind      string // such as "Ingress"
	Namespace string // of a Secret or of a namespace of Secrets; empty for a whole kind
	Name      string // of a Secret; empty for a whole kind or namespace
	Code      int    // 403, or 404 for a kind that the API server does not know
}

// Take adds what from has of what d keeps from being read, and says whether there was anything. An object that c has
// stays as it is.
func (c *Cluster) Take(d Denial, from Cluster) bool {
	taken := false
	for _, k := range kinds {
		if k.name != d.Kind {
			continue
		}
		had := map[Name]bool{}
		for _, o := range k.list(*c) {
			had[Name{o.GetNamespace(), o.GetName()}] = true
		}
		for _, o := range k.list(from) {
			if d.covers(o) && !had[Name{o.GetNamespace(), o.GetName()}] {
				k.add(c, o)
				taken = true
			}
		}
	}
	return taken
}

// covers says whether the object, of the Denial's kind, is kept from being read.
func (d Denial) covers(o metav1.Object) bool {
	return (d.Namespace == "" || d.Namespace == o.GetNamespace()) && (d.Name == "" || d.Name == o.GetName())
}

// A Name is the namespace and name of an object.
type Name struct{ Namespace, Name string }
