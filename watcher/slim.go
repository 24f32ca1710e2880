package watcher

import (
	"reflect"

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

func slimEndpointSlice(s *discoveryv1.EndpointSlice) {
	s.Annotations = nil
	keepLabels(s, discoveryv1.LabelServiceName, corev1.IsHeadlessService)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Hostname, e.DeprecatedTopology, e.Hints = nil, nil, nil
		if e.TargetRef != nil {
			e.TargetRef = &corev1.ObjectReference{Kind: e.TargetRef.Kind, Name: e.TargetRef.Name}
		}
	}
}

func slimNode(n *corev1.Node) {
	n.Annotations = nil
	keepLabels(n, corev1.LabelTopologyZone, corev1.LabelNodeExcludeBalancers)
	n.Spec = corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs}
	n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: readyOnly(n.Status.Conditions)}
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
