package objects

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Write writes the cluster's objects as ordinary manifests, which Read and kubectl apply take: documents ordered by kind,
// namespace and name, so that equal clusters give equal bytes. Each is JSON on a line of its own, which is YAML too and
// much faster to write and to read. Secrets are written with their data.
func Write(w io.Writer, c Cluster) error {
	b := bufio.NewWriter(w)
	for _, k := range kinds {
		all := k.list(c)
		slices.SortFunc(all, func(a, b metav1.Object) int {
			return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
		})
		for _, o := range all {
			if err := writeDocument(b, k.document(o)); err != nil {
				return fmt.Errorf("write %s: %w", k.id(o), err)
			}
		}
	}
	return b.Flush()
}

func writeDocument(w *bufio.Writer, o any) error {
	if _, err := w.WriteString("---\n"); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(o)
}
