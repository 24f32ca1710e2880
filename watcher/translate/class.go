package translate

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
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

// classesOf reads the cluster's IngressClasses.
func classesOf(c objects.Cluster) ingressClasses {
	cs := ingressClasses{ours: make(map[string]bool, len(c.IngressClasses))}
	for _, class := range c.IngressClasses {
		cs.ours[class.Name] = isOurClass(class)
		cs.isDefault = cs.isDefault || isOurClass(class) && isDefaultClass(class)
	}
	return cs
}

func isOurClass(c *networkingv1.IngressClass) bool { return c.Spec.Controller == IngressController }

func isDefaultClass(c *networkingv1.IngressClass) bool {
	return c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true"
}

// explainClasses records what is wrong with the cluster's IngressClasses.
func (t *translator) explainClasses() {
	var defaults []*networkingv1.IngressClass
	for _, c := range sorted(t.in.IngressClasses) {
		if isDefaultClass(c) {
			defaults = append(defaults, c)
		}
		if isOurClass(c) && c.Spec.Parameters != nil {
			t.problem(t.ref("IngressClass", c), "spec.parameters", model.ReasonUnsupported, "there are no parameters: they are ignored")
		}
	}
	if len(defaults) > 1 && slices.ContainsFunc(defaults, isOurClass) {
		t.explainDefaults(defaults)
	}
}

// explainDefaults records that more than one class is the default, which the API server refuses for new Ingresses.
func (t *translator) explainDefaults(defaults []*networkingv1.IngressClass) {
	i := slices.IndexFunc(defaults, isOurClass)
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
