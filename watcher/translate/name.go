package translate

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/objects"
)

func nameOf(o metav1.Object) objects.Name {
	return objects.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func compareNames(a, b objects.Name) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
