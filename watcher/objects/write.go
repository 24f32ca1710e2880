package objects

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/yaml"
)

// Write writes the cluster's objects as ordinary manifests, which Read and kubectl apply take: YAML documents ordered
// by kind, namespace and name, so that equal clusters give equal bytes.
func Write(w io.Writer, c Cluster) error {
	for _, k := range kinds {
		all := k.list(c)
		slices.SortFunc(all, func(a, b metav1.Object) int {
			return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
		})
		for _, o := range all {
			if err := writeDocument(w, k.document(o)); err != nil {
				return fmt.Errorf("write %s: %w", k.id(o), err)
			}
		}
	}
	return nil
}

func writeDocument(w io.Writer, o any) error {
	text, err := yaml.Marshal(o)
	if err != nil {
		return err
	}
	_, err = w.Write(bytes.Join([][]byte{[]byte("---\n"), text}, nil))
	return err
}
