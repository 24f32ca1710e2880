package watcher

import (
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/objects"
)

// The functions here drop, before an object is cached, what translation does not read: at 10,000 Services it is most of
// the memory. They may modify the object, which nobody else holds yet.

// slimMeta drops the metadata that no kind needs.
func slimMeta(o metav1.Object) {
	o.SetManagedFields(nil)
	o.SetOwnerReferences(nil)
	o.SetFinalizers(nil)
	o.SetGenerateName("")
	annotations := o.GetAnnotations()
	delete(annotations, corev1.LastAppliedConfigAnnotation)
	if len(annotations) == 0 {
		o.SetAnnotations(nil)
	}
}

// keepLabels drops all labels but those.
func keepLabels(o metav1.Object, keys ...string) {
	var kept map[string]string
	for _, k := range keys {
		if v, ok := o.GetLabels()[k]; ok {
			if kept == nil {
				kept = make(map[string]string, len(keys))
			}
			kept[k] = v
		}
	}
	o.SetLabels(kept)
}

// slimService leaves the selector to the EndpointSlice controller, and policies inside of the cluster to kube-proxy.
func (v *sharedValues) slimService(s *corev1.Service) {
	spec := &s.Spec
	spec.Selector, spec.InternalTrafficPolicy = nil, nil
	spec.IPFamilyPolicy = v.policies.pointer(spec.IPFamilyPolicy)
	for _, f := range []*string{(*string)(&spec.Type), (*string)(&spec.SessionAffinity), (*string)(&spec.ExternalTrafficPolicy), &s.Namespace} {
		*f = v.strings.value(*f)
	}
	for i := range spec.IPFamilies {
		spec.IPFamilies[i] = corev1.IPFamily(v.strings.value(string(spec.IPFamilies[i])))
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		p.Name, p.Protocol = v.strings.value(p.Name), corev1.Protocol(v.strings.value(string(p.Protocol)))
	}
	if len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] == spec.ClusterIP {
		spec.ClusterIPs[0] = spec.ClusterIP
	}
}

func (v *sharedValues) slimEndpointSlice(s *discoveryv1.EndpointSlice) {
	s.Annotations = nil
	keepLabels(s, discoveryv1.LabelServiceName, corev1.IsHeadlessService)
	s.Namespace = v.strings.value(s.Namespace)
	for i := range s.Ports {
		p := &s.Ports[i]
		p.Name, p.Protocol, p.Port = v.strings.pointer(p.Name), v.protocols.pointer(p.Protocol), v.ports.pointer(p.Port)
	}
	s.Endpoints = slices.Clone(s.Endpoints) // decoding leaves room for as many again
	for i := range s.Endpoints {
		v.slimEndpoint(&s.Endpoints[i])
	}
}

func (v *sharedValues) slimEndpoint(e *discoveryv1.Endpoint) {
	e.Hostname, e.DeprecatedTopology = nil, nil
	e.NodeName, e.Zone = v.strings.pointer(e.NodeName), v.strings.pointer(e.Zone)
	c := &e.Conditions
	c.Ready, c.Serving, c.Terminating = v.bools.pointer(c.Ready), v.bools.pointer(c.Serving), v.bools.pointer(c.Terminating)
	if e.TargetRef != nil {
		e.TargetRef = &corev1.ObjectReference{Kind: v.strings.value(e.TargetRef.Kind), Name: e.TargetRef.Name}
	}
	e.Hints = v.slimHints(e.Hints)
}

// slimHints keeps the zones.
func (v *sharedValues) slimHints(h *discoveryv1.EndpointHints) *discoveryv1.EndpointHints {
	if h == nil || len(h.ForZones) == 0 {
		return nil
	}
	for i := range h.ForZones {
		h.ForZones[i].Name = v.strings.value(h.ForZones[i].Name)
	}
	return &discoveryv1.EndpointHints{ForZones: h.ForZones}
}

func slimNode(n *corev1.Node) {
	n.Annotations = nil
	keepLabels(n, corev1.LabelTopologyZone, corev1.LabelNodeExcludeBalancers)
	n.Spec = corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs, Taints: slimTaints(n.Spec.Taints)}
	n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: readyOnly(n.Status.Conditions)}
}

// slimTaints keeps keys and effects: values are times and names that nothing is decided by.
func slimTaints(all []corev1.Taint) []corev1.Taint {
	for i := range all {
		all[i] = corev1.Taint{Key: all[i].Key, Effect: all[i].Effect}
	}
	return all
}

// readyOnly keeps the condition Ready, without its heartbeat, which changes all the time and says nothing.
func readyOnly(all []corev1.NodeCondition) []corev1.NodeCondition {
	for _, c := range all {
		if c.Type == corev1.NodeReady {
			return []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return nil
}

func slimNamespace(n *corev1.Namespace) {
	n.Annotations = nil
	n.Spec = corev1.NamespaceSpec{}
	n.Status = corev1.NamespaceStatus{}
}

// slimSecret keeps certificate and key, which is all that may be held of Secrets.
func slimSecret(s *corev1.Secret) {
	s.Annotations, s.Labels = nil, nil
	objects.SlimSecret(s)
}

// sameNode says whether an update changed nothing of what is kept: kubelets report every few minutes, at a thousand
// nodes several times a second.
func sameNode(old, next *corev1.Node) bool {
	a, b := *old, *next
	a.ResourceVersion, b.ResourceVersion = "", ""
	return reflect.DeepEqual(&a, &b)
}
