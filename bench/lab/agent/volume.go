package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// tokenVolume is the prefix of the volume that ServiceAccount admission adds to every pod. Programs of the lab do
// not read it, so a pod runs without.
const tokenVolume = "kube-api-access-"

// volumesDir holds a folder for each volume below a pod's.
const volumesDir = "volumes"

// refreshInterval is how often the content of volumes is compared with the objects that it comes from.
const refreshInterval = time.Second

// podVolumes makes the volumes of one pod: folders of the node, which containers see by bind mounts.
type podVolumes struct {
	dir   string
	specs []corev1.Volume

	mu    sync.Mutex
	ready map[string]bool // volumes that were made, by name
}

// contents is what the content of volumes is computed from.
type contents struct {
	config *configReader
	pod    *corev1.Pod
	facts  podFacts
}

// mounts makes the volumes of a container and returns how to mount them.
func (v *podVolumes) mounts(ctx context.Context, c *corev1.Container, from contents) ([]bindMount, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var mounts []bindMount
	for _, m := range c.VolumeMounts {
		if strings.HasPrefix(m.Name, tokenVolume) {
			continue
		}
		mount, err := v.mount(ctx, m, from)
		if err != nil {
			return nil, fmt.Errorf("container %q: volume %q: %w", c.Name, m.Name, err)
		}
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

func (v *podVolumes) mount(ctx context.Context, m corev1.VolumeMount, from contents) (bindMount, error) {
	i := slices.IndexFunc(v.specs, func(s corev1.Volume) bool { return s.Name == m.Name })
	if i < 0 {
		return bindMount{}, errors.New("it is not in spec.volumes")
	}
	spec := &v.specs[i]
	if err := v.make(ctx, spec, from); err != nil {
		return bindMount{}, err
	}
	source := v.folder(spec.Name)
	if m.SubPath != "" {
		if !filepath.IsLocal(m.SubPath) {
			return bindMount{}, fmt.Errorf("subPath %q leads out of the volume", m.SubPath)
		}
		source = filepath.Join(source, m.SubPath)
	}
	_, err := os.Stat(source)
	if spec.EmptyDir != nil && errors.Is(err, fs.ErrNotExist) { // a subPath, which kubelet makes too
		err = os.MkdirAll(source, 0o755)
	}
	return bindMount{source, m.MountPath, m.ReadOnly || spec.EmptyDir == nil}, err
}

func (v *podVolumes) folder(volume string) string { return filepath.Join(v.dir, volume) }

// make makes the volume, or brings its content up to date.
func (v *podVolumes) make(ctx context.Context, spec *corev1.Volume, from contents) error {
	if spec.EmptyDir != nil {
		return v.makeEmpty(spec)
	}
	content, err := from.of(ctx, spec)
	if err != nil {
		return err
	}
	v.ready[spec.Name] = true
	return content.write(v.folder(spec.Name))
}

func (v *podVolumes) makeEmpty(spec *corev1.Volume) error {
	if v.ready[spec.Name] {
		return nil
	}
	folder := v.folder(spec.Name)
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	if spec.EmptyDir.Medium == corev1.StorageMediumMemory {
		options := "mode=0777"
		if limit := spec.EmptyDir.SizeLimit; limit != nil {
			options += fmt.Sprintf(",size=%d", limit.Value())
		}
		if err := unix.Mount("tmpfs", folder, "tmpfs", 0, options); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
	}
	v.ready[spec.Name] = true
	return os.Chmod(folder, 0o777) // whatever the umask is
}

// refresh brings the volumes that have been made up to date. A volume whose object is gone keeps its content.
func (v *podVolumes) refresh(ctx context.Context, from contents) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	for i := range v.specs {
		if spec := &v.specs[i]; v.ready[spec.Name] {
			if err := v.make(ctx, spec, from); err != nil {
				errs = append(errs, fmt.Errorf("volume %q: %w", spec.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// keepVolumes refreshes the pod's volumes until ctx ends. A pod whose volumes have no content needs none of it.
func (w *podWorker) keepVolumes(ctx context.Context) {
	if !slices.ContainsFunc(w.spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir == nil && !strings.HasPrefix(v.Name, tokenVolume) }) {
		return
	}
	reported := fmt.Sprint(error(nil))
	for sleep(ctx, refreshInterval) {
		err := within(ctx, func(ctx context.Context) error { return w.volumes.refresh(ctx, w.contents()) })
		if fmt.Sprint(err) == reported || ctx.Err() != nil {
			continue
		}
		reported = fmt.Sprint(err)
		if err != nil {
			w.event(corev1.EventTypeWarning, "FailedMount", "Volumes cannot be brought up to date: %v", err)
		}
	}
}

func (w *podWorker) contents() contents {
	pod, facts, _ := w.surroundings()
	return contents{newConfigReader(w.client, w.namespace), pod, facts}
}

// removePodDir removes a pod's folder and the mounts in it. It may be missing.
func removePodDir(dir string) error {
	folders, err := filepath.Glob(filepath.Join(dir, volumesDir, "*"))
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: no mount point
			return fmt.Errorf("unmount %s: %w", folder, err)
		}
	}
	return os.RemoveAll(dir)
}

// RemoveDir removes a [Config].Dir and what is mounted in it. No agent may use it; it may be missing.
func RemoveDir(dir string) error {
	pods, err := os.ReadDir(filepath.Join(dir, podsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, pod := range pods {
		if err := removePodDir(filepath.Join(dir, podsDir, pod.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
