package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sallyport/bench/lab/network"
)

// searchPath is the PATH of every container.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the variables of one container: by name to expand $(NAME), and in order for the process.
type environment struct {
	values map[string]string
	names  []string
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

// list returns NAME=value pairs as execve takes them.
func (e *environment) list() []string {
	pairs := make([]string, len(e.names))
	for i, name := range e.names {
		pairs[i] = name + "=" + e.values[name]
	}
	return pairs
}

// podFacts is what the downward API tells a container beyond the Pod object itself.
type podFacts struct {
	hostname string
	hostIPs  []netip.Addr
	podIPs   []netip.Addr
}

// containerEnv computes a container's environment. A value may refer to variables set before it.
func containerEnv(ctx context.Context, c *corev1.Container, from contents) (*environment, error) {
	env := &environment{values: map[string]string{}}
	env.set("PATH", searchPath)
	env.set("HOSTNAME", from.facts.hostname)
	if name, ok := os.LookupEnv(network.LabVariable); ok { // by which the lab finds its processes again
		env.set(network.LabVariable, name)
	}
	for i := range c.EnvFrom {
		if err := env.setFrom(ctx, &c.EnvFrom[i], from.config); err != nil {
			return nil, fmt.Errorf("container %q: envFrom[%d]: %w", c.Name, i, err)
		}
	}
	for i := range c.Env {
		v := &c.Env[i]
		value, found, err := envValue(ctx, v, from, env.values)
		if err != nil {
			return nil, fmt.Errorf("container %q: env %q: %w", c.Name, v.Name, err)
		}
		if found {
			env.set(v.Name, value)
		}
	}
	return env, nil
}

// setFrom sets a variable for each key of an object (EnvFromSource).
func (e *environment) setFrom(ctx context.Context, source *corev1.EnvFromSource, config *configReader) (err error) {
	var data map[string][]byte
	switch {
	case source.SecretRef != nil:
		data, err = config.read(ctx, kindSecret, source.SecretRef.Name, source.SecretRef.Optional)
	case source.ConfigMapRef != nil:
		data, err = config.read(ctx, kindConfigMap, source.ConfigMapRef.Name, source.ConfigMapRef.Optional)
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		e.set(source.Prefix+key, string(data[key]))
	}
	return err
}

// envValue returns the value of a variable. found is false for one whose source is optional and not there: it is not set.
func envValue(ctx context.Context, v *corev1.EnvVar, from contents, known map[string]string) (value string, found bool, err error) {
	source := v.ValueFrom
	switch {
	case source == nil:
		return expand(v.Value, known), true, nil
	case source.FieldRef != nil:
		value, err = fieldValue(from.pod, source.FieldRef.FieldPath, from.facts)
		return value, true, err
	case source.SecretKeyRef != nil:
		return from.config.key(ctx, kindSecret, source.SecretKeyRef.Name, source.SecretKeyRef.Key, source.SecretKeyRef.Optional)
	case source.ConfigMapKeyRef != nil:
		return from.config.key(ctx, kindConfigMap, source.ConfigMapKeyRef.Name, source.ConfigMapKeyRef.Key, source.ConfigMapKeyRef.Optional)
	}
	return "", false, errors.New("valueFrom supports only fieldRef, secretKeyRef and configMapKeyRef in the lab's node agent")
}

// fieldValue answers a fieldRef of the downward API (EnvVarSource.fieldRef).
func fieldValue(pod *corev1.Pod, fieldPath string, facts podFacts) (string, error) {
	switch fieldPath {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return joinAddrs(facts.hostIPs[:min(1, len(facts.hostIPs))]), nil
	case "status.hostIPs":
		return joinAddrs(facts.hostIPs), nil
	case "status.podIP":
		return joinAddrs(facts.podIPs[:min(1, len(facts.podIPs))]), nil
	case "status.podIPs":
		return joinAddrs(facts.podIPs), nil
	}
	if key, ok := subscript(fieldPath, "metadata.labels"); ok {
		return pod.Labels[key], nil
	}
	if key, ok := subscript(fieldPath, "metadata.annotations"); ok {
		return pod.Annotations[key], nil
	}
	return "", fmt.Errorf("fieldRef %q is not supported", fieldPath)
}

// subscript returns KEY of field['KEY'].
func subscript(fieldPath, field string) (key string, ok bool) {
	rest, ok := strings.CutPrefix(fieldPath, field+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

func joinAddrs(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ",")
}

func expandAll(words []string, known map[string]string) []string {
	out := make([]string, len(words))
	for i, word := range words {
		out[i] = expand(word, known)
	}
	return out
}

// expand replaces $(NAME) by the variable's value. $$ is a literal $, and a reference to an unknown variable stays
// as it is (Container.args in the API reference).
func expand(s string, known map[string]string) string {
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			out.WriteString(s)
			return out.String()
		}
		out.WriteString(s[:i])
		text, size := reference(s[i:], known)
		out.WriteString(text)
		s = s[i+size:]
	}
}

// reference expands the $ at the start of s and returns how many bytes of s it stands for.
func reference(s string, known map[string]string) (text string, size int) {
	if s[1] == '$' {
		return "$", 2
	}
	end := strings.IndexByte(s, ')')
	if s[1] != '(' || end < 0 {
		return s[:1], 1
	}
	if value, ok := known[s[2:end]]; ok {
		return value, end + 1
	}
	return s[:end+1], end + 1
}
