package agent

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// tokenVolume is the prefix of the volume that ServiceAccount admission adds to every pod. Programs of the lab do
// not read it, so a pod runs without.
const tokenVolume = "kube-api-access-"

// checkSupported says what a container asks for that the agent does not do. Such a container is not started: one
// that runs without its volume would fail in a way that nobody understands.
func checkSupported(pod *corev1.PodSpec, c *corev1.Container) error {
	if pod.ActiveDeadlineSeconds != nil {
		return errors.New("activeDeadlineSeconds is not supported by the lab's node agent")
	}
	for _, p := range c.Ports {
		if p.HostPort != 0 && !pod.HostNetwork {
			return fmt.Errorf("container %q: hostPort %d is not supported by the lab's node agent", c.Name, p.HostPort)
		}
	}
	for _, m := range c.VolumeMounts {
		if !strings.HasPrefix(m.Name, tokenVolume) {
			return fmt.Errorf("container %q: volume %q cannot be mounted by the lab's node agent", c.Name, m.Name)
		}
	}
	if c.RestartPolicy != nil {
		return fmt.Errorf("container %q: a restartPolicy of its own is not supported by the lab's node agent", c.Name)
	}
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		return fmt.Errorf("container %q: lifecycle.postStart is not supported by the lab's node agent", c.Name)
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		if p != nil && p.GRPC != nil {
			return fmt.Errorf("container %q: grpc probes are not supported by the lab's node agent", c.Name)
		}
	}
	return nil
}
