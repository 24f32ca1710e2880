package agent

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

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
		if m.SubPathExpr != "" {
			return fmt.Errorf("container %q: subPathExpr %q is not supported by the lab's node agent", c.Name, m.SubPathExpr)
		}
		if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
			return fmt.Errorf("container %q: mountPropagation %s is not supported by the lab's node agent", c.Name, *m.MountPropagation)
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
