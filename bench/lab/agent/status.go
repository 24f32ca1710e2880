package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// observed is what the agent knows of a pod: the input of its status.
type observed struct {
	hostIPs      []netip.Addr // at least one
	podIPs       []netip.Addr
	startTime    metav1.Time
	networkError string // why the pod has no network yet
	inits, mains []corev1.ContainerStatus
	finished     bool // no container runs, and none will
}

// podStatus computes the status of a pod: the one that the API server has, with everything replaced that a kubelet
// owns. Conditions of others stay, and a condition's transition time moves only with its status.
func podStatus(pod *corev1.Pod, o observed, now metav1.Time) corev1.PodStatus {
	s := *pod.Status.DeepCopy()
	s.Phase = podPhase(o)
	s.HostIP, s.HostIPs = o.hostIPs[0].String(), nil
	for _, ip := range o.hostIPs {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip.String()})
	}
	if s.StartTime == nil {
		s.StartTime = &o.startTime
	}
	s.PodIP, s.PodIPs = "", nil
	for _, ip := range o.podIPs {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
	s.InitContainerStatuses = slices.Clone(o.inits)
	s.ContainerStatuses = slices.Clone(o.mains)
	for _, c := range podConditions(pod, o, s.Phase) {
		setCondition(&s, c, now)
	}
	return s
}

// podPhase follows the API reference of PodPhase: a pod is Running from its first container's start, and ends only
// when all have ended for good.
func podPhase(o observed) corev1.PodPhase {
	if o.finished {
		return finalPhase(o)
	}
	started := func(c corev1.ContainerStatus) bool {
		return c.State.Waiting == nil || c.LastTerminationState.Terminated != nil
	}
	if initialised(o) && slices.ContainsFunc(o.mains, started) {
		return corev1.PodRunning
	}
	return corev1.PodPending
}

func finalPhase(o observed) corev1.PodPhase {
	for _, c := range slices.Concat(o.inits, o.mains) {
		if c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 {
			return corev1.PodFailed
		}
	}
	return corev1.PodSucceeded
}

func initialised(o observed) bool {
	return !slices.ContainsFunc(o.inits, func(c corev1.ContainerStatus) bool {
		return c.State.Terminated == nil || c.State.Terminated.ExitCode != 0
	})
}

// podConditions lists the conditions that a kubelet owns.
func podConditions(pod *corev1.Pod, o observed, phase corev1.PodPhase) []corev1.PodCondition {
	containers := readyCondition(o, phase)
	pending := notInitialised(o)
	return []corev1.PodCondition{
		condition(corev1.PodScheduled, "", ""),
		condition(corev1.PodReadyToStartContainers, o.networkReason(), o.networkError),
		condition(corev1.PodInitialized, pending.Reason, pending.Message),
		containers,
		gatedCondition(pod, containers),
	}
}

func (o observed) networkReason() string {
	switch {
	case o.networkError != "":
		return "FailedCreatePodSandBox"
	case len(o.podIPs) == 0:
		return "NoNetwork"
	}
	return ""
}

func notInitialised(o observed) corev1.PodCondition {
	if initialised(o) {
		return condition(corev1.PodInitialized, "", "")
	}
	names := failing(o.inits, func(c corev1.ContainerStatus) bool {
		return c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
	})
	return condition(corev1.PodInitialized, "ContainersNotInitialized", "containers with incomplete status: "+names)
}

func readyCondition(o observed, phase corev1.PodPhase) corev1.PodCondition {
	if phase == corev1.PodSucceeded {
		return condition(corev1.ContainersReady, "PodCompleted", "")
	}
	if names := failing(o.mains, func(c corev1.ContainerStatus) bool { return c.Ready }); names != "" {
		return condition(corev1.ContainersReady, "ContainersNotReady", "containers with unready status: "+names)
	}
	return condition(corev1.ContainersReady, "", "")
}

// gatedCondition is Ready: all containers are, and the conditions named by spec.readinessGates are True.
func gatedCondition(pod *corev1.Pod, containers corev1.PodCondition) corev1.PodCondition {
	containers.Type = corev1.PodReady
	if containers.Status != corev1.ConditionTrue {
		return containers
	}
	for _, gate := range pod.Spec.ReadinessGates {
		if !conditionTrue(pod.Status.Conditions, gate.ConditionType) {
			return condition(corev1.PodReady, "ReadinessGatesNotReady", fmt.Sprintf("condition %q is not True", gate.ConditionType))
		}
	}
	return containers
}

// condition is True without a reason, and False with one.
func condition(t corev1.PodConditionType, reason, message string) corev1.PodCondition {
	status := corev1.ConditionTrue
	if reason != "" {
		status = corev1.ConditionFalse
	}
	return corev1.PodCondition{Type: t, Status: status, Reason: reason, Message: message}
}

func conditionTrue(conditions []corev1.PodCondition, t corev1.PodConditionType) bool {
	return slices.ContainsFunc(conditions, func(c corev1.PodCondition) bool {
		return c.Type == t && c.Status == corev1.ConditionTrue
	})
}

// failing names the containers for which ok does not hold.
func failing(containers []corev1.ContainerStatus, ok func(corev1.ContainerStatus) bool) string {
	var names []string
	for _, c := range containers {
		if !ok(c) {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ", ")
}

func setCondition(s *corev1.PodStatus, c corev1.PodCondition, now metav1.Time) {
	i := slices.IndexFunc(s.Conditions, func(have corev1.PodCondition) bool { return have.Type == c.Type })
	if i < 0 {
		c.LastTransitionTime = now
		s.Conditions = append(s.Conditions, c)
		return
	}
	c.LastTransitionTime = s.Conditions[i].LastTransitionTime
	if s.Conditions[i].Status != c.Status {
		c.LastTransitionTime = now
	}
	c.ObservedGeneration = s.Conditions[i].ObservedGeneration
	s.Conditions[i] = c
}
