package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// fieldManager is the name under which the lab applies manifests.
const fieldManager = "sallyport-lab"

// apply does the work of Apply.
func (c *Cluster) apply(ctx context.Context, namespace, manifests string) error {
	return c.eachObject(namespace, manifests, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		_, err := r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		return err
	})
}

// delete does the work of Delete.
func (c *Cluster) delete(ctx context.Context, namespace, manifests string) error {
	return c.eachObject(namespace, manifests, func(r dynamic.ResourceInterface, o *unstructured.Unstructured) error {
		err := r.Delete(ctx, o.GetName(), metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// eachObject calls do for each object until the first error.
func (c *Cluster) eachObject(namespace, manifests string, do func(dynamic.ResourceInterface, *unstructured.Unstructured) error) error {
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096)
	for i := 1; ; i++ {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("decode manifest %d: %w", i, err)
		}
		if len(object.Object) == 0 { // an empty document
			continue
		}
		resource, err := c.resource(namespace, object)
		if err == nil {
			err = do(resource, object)
		}
		if err != nil {
			return fmt.Errorf("manifest %d, %s %s: %w", i, object.GetKind(), object.GetName(), err)
		}
	}
}

// resource finds the API resource of an object.
func (c *Cluster) resource(namespace string, object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, err
	}
	resource := c.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return resource, nil
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(namespace)
	}
	return resource.Namespace(object.GetNamespace()), nil
}
