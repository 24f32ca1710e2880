package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// of computes the content of a volume.
func (c contents) of(ctx context.Context, v *corev1.Volume) (payload, error) {
	switch {
	case v.Secret != nil:
		return c.object(ctx, kindSecret, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, fileMode(v.Secret.DefaultMode))
	case v.ConfigMap != nil:
		return c.object(ctx, kindConfigMap, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, fileMode(v.ConfigMap.DefaultMode))
	case v.DownwardAPI != nil:
		return c.downward(v.DownwardAPI.Items, fileMode(v.DownwardAPI.DefaultMode))
	case v.Projected != nil:
		return c.projected(ctx, v.Projected)
	}
	return nil, errors.New("the lab's node agent has only secret, configMap, emptyDir, downwardAPI and projected volumes")
}

// fileMode returns the mode of a volume's files: 0644 unless the API server, which sets that default, says otherwise.
func fileMode(mode *int32) fs.FileMode {
	if mode == nil {
		return fs.FileMode(corev1.SecretVolumeSourceDefaultMode)
	}
	return fs.FileMode(*mode).Perm()
}

// object returns the keys of a Secret or ConfigMap as files: all of them, or the items that are listed.
func (c contents) object(ctx context.Context, kind, name string, items []corev1.KeyToPath, optional *bool, mode fs.FileMode) (payload, error) {
	data, err := c.config.read(ctx, kind, name, optional)
	if err != nil {
		return nil, err
	}
	files := payload{}
	if len(items) == 0 {
		for key, value := range data {
			files[key] = payloadFile{value, mode}
		}
		return files, nil
	}
	for _, item := range items {
		value, found, err := c.config.key(ctx, kind, name, item.Key, optional)
		if err != nil {
			return nil, err
		}
		if found {
			files[item.Path] = payloadFile{[]byte(value), itemMode(item.Mode, mode)}
		}
	}
	return files, nil
}

func itemMode(own *int32, otherwise fs.FileMode) fs.FileMode {
	if own == nil {
		return otherwise
	}
	return fileMode(own)
}

// downward returns what the pod says of itself (DownwardAPIVolumeSource).
func (c contents) downward(items []corev1.DownwardAPIVolumeFile, mode fs.FileMode) (payload, error) {
	files := payload{}
	for _, item := range items {
		if item.FieldRef == nil {
			return nil, fmt.Errorf("item %q: only fieldRef is supported by the lab's node agent", item.Path)
		}
		value, err := c.field(item.FieldRef.FieldPath)
		if err != nil {
			return nil, fmt.Errorf("item %q: %w", item.Path, err)
		}
		files[item.Path] = payloadFile{[]byte(value), itemMode(item.Mode, mode)}
	}
	return files, nil
}

// field is fieldValue, and the two fields that only volumes may have as a whole: a line KEY="VALUE" for each.
func (c contents) field(path string) (string, error) {
	switch path {
	case "metadata.labels":
		return lines(c.pod.Labels), nil
	case "metadata.annotations":
		return lines(c.pod.Annotations), nil
	}
	return fieldValue(c.pod, path, c.facts)
}

func lines(m map[string]string) string {
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&text, "%s=%q\n", key, m[key])
	}
	return text.String()
}

// projected puts several sources into one volume; of two files with the same path the later one counts.
func (c contents) projected(ctx context.Context, v *corev1.ProjectedVolumeSource) (payload, error) {
	files, mode := payload{}, fileMode(v.DefaultMode)
	for i := range v.Sources {
		part, err := c.projection(ctx, &v.Sources[i], mode)
		if err != nil {
			return nil, fmt.Errorf("sources[%d]: %w", i, err)
		}
		maps.Copy(files, part)
	}
	return files, nil
}

func (c contents) projection(ctx context.Context, p *corev1.VolumeProjection, mode fs.FileMode) (payload, error) {
	switch {
	case p.Secret != nil:
		return c.object(ctx, kindSecret, p.Secret.Name, p.Secret.Items, p.Secret.Optional, mode)
	case p.ConfigMap != nil:
		return c.object(ctx, kindConfigMap, p.ConfigMap.Name, p.ConfigMap.Items, p.ConfigMap.Optional, mode)
	case p.DownwardAPI != nil:
		return c.downward(p.DownwardAPI.Items, mode)
	}
	return nil, errors.New("the lab's node agent projects only secret, configMap and downwardAPI")
}
