package agent

import (
	"context"
	"fmt"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Kinds of objects that hold a pod's configuration.
const (
	kindSecret    = "secret"
	kindConfigMap = "configMap"
)

// configReader reads the Secrets and ConfigMaps of one namespace, each at most once: what it hands out is of one moment.
type configReader struct {
	client    kubernetes.Interface
	namespace string
	known     map[configName]map[string][]byte
}

type configName struct{ kind, name string }

func newConfigReader(client kubernetes.Interface, namespace string) *configReader {
	return &configReader{client: client, namespace: namespace, known: map[configName]map[string][]byte{}}
}

// read returns the data of an object. An object that is optional and does not exist has none.
func (r *configReader) read(ctx context.Context, kind, name string, optional *bool) (map[string][]byte, error) {
	data, ok := r.known[configName{kind, name}]
	if ok {
		return data, nil
	}
	data, err := r.get(ctx, kind, name)
	if optional != nil && *optional && apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", kind, r.namespace, name, err)
	}
	r.known[configName{kind, name}] = data
	return data, nil
}

func (r *configReader) get(ctx context.Context, kind, name string) (map[string][]byte, error) {
	if kind == kindSecret {
		secret, err := r.client.CoreV1().Secrets(r.namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return secret.Data, nil
	}
	m, err := r.client.CoreV1().ConfigMaps(r.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for key, value := range m.Data {
		data[key] = []byte(value)
	}
	maps.Copy(data, m.BinaryData)
	return data, nil
}

// key returns one value of an object. found is false if it is optional and not there.
func (r *configReader) key(ctx context.Context, kind, name, key string, optional *bool) (value string, found bool, err error) {
	data, err := r.read(ctx, kind, name, optional)
	if err != nil {
		return "", false, err
	}
	text, found := data[key]
	if !found && (optional == nil || !*optional) {
		return "", false, fmt.Errorf("%s %s/%s has no key %q", kind, r.namespace, name, key)
	}
	return string(text), found, nil
}
