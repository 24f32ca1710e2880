package objects

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"
)

// A kind is one Kubernetes kind that Sallyport reads: how to decode it, and where a Cluster keeps it.
type kind struct {
	apiVersion string
	name       string
	namespaced bool
	// decode reads one object of the kind from JSON and sets its defaults. The warnings name fields that the kind
	// does not have; the object is good without them.
	decode func(data []byte) (o metav1.Object, warnings []error, err error)
	add    func(c *Cluster, o metav1.Object)
	list   func(c Cluster) []metav1.Object
	// document gives the object as it is written: with apiVersion and kind, which objects from an API server lack, and
	// without resourceVersion and UID, with which another API server would refuse it. That of the namespace kube-system
	// stays: it identifies the cluster.
	document func(o metav1.Object) any
}

// kinds are in the order in which Write writes them.
var kinds = []kind{
	newKind("v1", "Namespace", false, func(c *Cluster) *[]*corev1.Namespace { return &c.Namespaces }, noDefaults,
		func(o *corev1.Namespace) *metav1.TypeMeta { return &o.TypeMeta }),
	newKind("v1", "Node", false, func(c *Cluster) *[]*corev1.Node { return &c.Nodes }, noDefaults,
		func(o *corev1.Node) *metav1.TypeMeta { return &o.TypeMeta }),
	newKind("v1", "Service", true, func(c *Cluster) *[]*corev1.Service { return &c.Services }, defaultService,
		func(o *corev1.Service) *metav1.TypeMeta { return &o.TypeMeta }),
	newKind("discovery.k8s.io/v1", "EndpointSlice", true,
		func(c *Cluster) *[]*discoveryv1.EndpointSlice { return &c.EndpointSlices }, defaultEndpointSlice,
		func(o *discoveryv1.EndpointSlice) *metav1.TypeMeta { return &o.TypeMeta }),
	newKind("networking.k8s.io/v1", "IngressClass", false,
		func(c *Cluster) *[]*networkingv1.IngressClass { return &c.IngressClasses }, noDefaults,
		func(o *networkingv1.IngressClass) *metav1.TypeMeta { return &o.TypeMeta }),
	newKind("networking.k8s.io/v1", "Ingress", true,
		func(c *Cluster) *[]*networkingv1.Ingress { return &c.Ingresses }, noDefaults,
		func(o *networkingv1.Ingress) *metav1.TypeMeta { return &o.TypeMeta }),
	newKind("v1", secretKind, true, func(c *Cluster) *[]*corev1.Secret { return &c.Secrets }, defaultSecret,
		func(o *corev1.Secret) *metav1.TypeMeta { return &o.TypeMeta }),
}

// object is a pointer to a Kubernetes type T.
type object[T any] interface {
	*T
	metav1.Object
}

// newKind makes a kind of the type T, which a Cluster keeps in the slice that field points to.
func newKind[T any, P object[T]](apiVersion, name string, namespaced bool,
	field func(*Cluster) *[]P, defaults func(P), meta func(P) *metav1.TypeMeta) kind {
	return kind{
		apiVersion: apiVersion,
		name:       name,
		namespaced: namespaced,
		decode: func(data []byte) (metav1.Object, []error, error) {
			p := P(new(T))
			warnings, err := kjson.UnmarshalStrict(data, p)
			if err != nil {
				return nil, nil, err
			}
			defaults(p)
			return p, warnings, nil
		},
		add: func(c *Cluster, o metav1.Object) {
			s := field(c)
			*s = append(*s, o.(P))
		},
		list: func(c Cluster) []metav1.Object {
			var all []metav1.Object
			for _, p := range *field(&c) {
				all = append(all, p)
			}
			return all
		},
		document: func(o metav1.Object) any {
			v := *o.(P)
			*meta(&v) = metav1.TypeMeta{APIVersion: apiVersion, Kind: name}
			P(&v).SetResourceVersion("")
			if name != "Namespace" || o.GetName() != metav1.NamespaceSystem {
				P(&v).SetUID("")
			}
			return &v
		},
	}
}

// findKind returns the kind of that apiVersion and name, or nil if Sallyport does not use it. A kind that is used, but
// in another version, is an error, because leaving it out in silence would surprise.
func findKind(apiVersion, name string) (*kind, error) {
	for i, k := range kinds {
		switch {
		case k.name != name:
		case k.apiVersion == apiVersion:
			return &kinds[i], nil
		case olderVersion(name, apiVersion):
			return nil, fmt.Errorf("apiVersion %q of kind %s is not read: convert it to %s", apiVersion, name, k.apiVersion)
		}
	}
	return nil, nil
}

// olderVersion says whether apiVersion once held the kind. Other groups may have kinds of the same name, such as
// Knative's Service, which are none of ours.
func olderVersion(kind, apiVersion string) bool {
	group, _, _ := strings.Cut(apiVersion, "/")
	switch kind {
	case "Ingress", "IngressClass":
		return group == "networking.k8s.io" || group == "extensions"
	case "EndpointSlice":
		return group == "discovery.k8s.io"
	default:
		return false
	}
}

// checkMeta sets the default namespace and refuses names that an API server would not have taken: they reach logs,
// rules and metrics.
func (k *kind) checkMeta(o metav1.Object) error {
	if !k.namespaced {
		o.SetNamespace("")
	} else if o.GetNamespace() == "" {
		o.SetNamespace(metav1.NamespaceDefault)
	}
	if o.GetName() == "" {
		return errors.New("metadata.name is missing")
	}
	if len(validation.IsDNS1123Subdomain(o.GetName())) > 0 {
		return fmt.Errorf("metadata.name %q is no name: use lower-case letters, digits, dots and hyphens", o.GetName())
	}
	if k.namespaced && len(validation.IsDNS1123Label(o.GetNamespace())) > 0 {
		return fmt.Errorf("metadata.namespace %q is no name: use lower-case letters, digits and hyphens", o.GetNamespace())
	}
	return nil
}

// id names the object for comparisons and messages: "Service shop/web", "Node n1".
func (k *kind) id(o metav1.Object) string {
	if k.namespaced {
		return k.name + " " + o.GetNamespace() + "/" + o.GetName()
	}
	return k.name + " " + o.GetName()
}

// header is what every manifest has in common.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

// isList says whether the manifest only wraps others: kind List, ServiceList and so on.
func (h header) isList() bool { return strings.HasSuffix(h.Kind, "List") && h.Items != nil }
