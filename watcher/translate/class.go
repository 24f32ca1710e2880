package translate

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"sallyport/watcher/model"
)

// Names by which an Ingress becomes ours.
const (
	// IngressController in the spec.controller of an IngressClass makes the class ours.
	IngressController = "sallyport.io/ingress"
	// ingressClassName in the old annotation is ours even without an IngressClass object.
	ingressClassName = "sallyport"
	// ingressClassAnnotation is how an Ingress named its class before networking/v1.
	ingressClassAnnotation = "kubernetes.io/ingress.class"
)

// ingressClasses says which Ingresses are ours.
type ingressClasses struct {
	ours      map[string]bool // by the class's name; false for the other controllers' classes
	isDefault bool            // an Ingress without class is ours
}

// ingressClasses reads the cluster's IngressClasses.
func (t *translator) ingressClasses() ingressClasses {
	cs := ingressClasses{ours: make(map[string]bool, len(t.in.IngressClasses))}
	var defaults []*networkingv1.IngressClass
	for _, c := range sorted(t.in.IngressClasses) {
		ours := c.Spec.Controller == IngressController
		cs.ours[c.Name] = ours
		if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			defaults = append(defaults, c)
			cs.isDefault = cs.isDefault || ours
		}
		if ours && c.Spec.Parameters != nil {
			t.problem(t.ref("IngressClass", c), "spec.parameters", model.ReasonUnsupported, "there are no parameters: they are ignored")
		}
	}
	if cs.isDefault && len(defaults) > 1 {
		t.explainDefaults(defaults)
	}
	return cs
}

// explainDefaults records that more than one class is the default, which the API server refuses for new Ingresses.
func (t *translator) explainDefaults(defaults []*networkingv1.IngressClass) {
	i := slices.IndexFunc(defaults, func(c *networkingv1.IngressClass) bool { return c.Spec.Controller == IngressController })
	other := defaults[0]
	if i == 0 {
		other = defaults[1]
	}
	t.problem(t.ref("IngressClass", defaults[i]), annotationField(networkingv1.AnnotationIsDefaultIngressClass), model.ReasonInvalidField,
		"IngressClass %s is the default as well: Ingresses without a class are served here too; leave one default", other.Name)
}

// serve says whether the Ingress is ours: spec.ingressClassName wins over the old annotation, and only an Ingress with
// neither is of the default class.
func (cs ingressClasses) serve(ing *networkingv1.Ingress) bool {
	if c := ing.Spec.IngressClassName; c != nil {
		return cs.ours[*c]
	}
	if c := ing.Annotations[ingressClassAnnotation]; c != "" {
		ours, exists := cs.ours[c]
		return ours || !exists && c == ingressClassName
	}
	return cs.isDefault
}
