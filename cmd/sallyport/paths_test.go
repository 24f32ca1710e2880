package main

import (
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/gateway/route"
	"sallyport/watcher/objects"
	"sallyport/watcher/translate"
)

// TestIngressPathsHaveTheFormOfRequests holds translation and gateway together, which may not import each other: what an
// Ingress writes is stored in the form that a request for the same path is given, or it would never match.
func TestIngressPathsHaveTheFormOfRequests(t *testing.T) {
	for _, path := range []string{
		"/", "/a", "/a/b", "/a/", "/%61", "/a%20b", "/a b", "/%e4%BD%a0", "/你", "/~user", "/%7Euser", "/a;v=1", "/a,b", "/a+b",
		"/%2B", "/a=b&c", "/@x:y", "/(a)", "/a'b", "/a*b!$", "/[x]", "/a|b", "/a^b", "/%5Bx%5D", "/a\"b", "/<a>", "/{id}", "/a`b",
	} {
		want, err := route.AppendPath(nil, []byte(path))
		if err != nil {
			t.Errorf("%q: the gateway refuses it: %v", path, err)
			continue
		}
		s := translate.Translate(objects.Objects{ingressFor(path)}, translate.Options{})
		if len(s.Routes) != 1 || s.Routes[0].Path != string(want) {
			t.Errorf("%q: the gateway makes it %q, translation %+v %v", path, want, s.Routes, s.Problems)
		}
	}
}

// ingressFor has one Exact path.
func ingressFor(path string) objects.Cluster {
	exact := networkingv1.PathTypeExact
	rule := networkingv1.IngressRule{Host: "a.example.com"}
	rule.HTTP = &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{Path: path, PathType: &exact,
		Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "a", Port: networkingv1.ServiceBackendPort{Number: 80}}}}}}
	return objects.Cluster{Ingresses: []*networkingv1.Ingress{{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default", Annotations: map[string]string{"kubernetes.io/ingress.class": "sallyport"}},
		Spec:       networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{rule}},
	}}}
}
