package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func waiting(name string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}
}

func running(name string, ready bool) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, Ready: ready, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
}

func exited(name string, code int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}
}

func crashing(name string) corev1.ContainerStatus {
	s := waiting(name)
	s.LastTerminationState = exited(name, 1).State
	return s
}

// summary is a status in one line: phase, then the conditions that are not True.
func summary(s corev1.PodStatus) string {
	words := []string{string(s.Phase)}
	for _, c := range s.Conditions {
		if c.Status != corev1.ConditionTrue {
			words = append(words, fmt.Sprintf("%s: %s %s", c.Type, c.Reason, c.Message))
		}
	}
	return strings.Join(words, "; ")
}

func TestPodStatus(t *testing.T) {
	list := func(s ...corev1.ContainerStatus) []corev1.ContainerStatus { return s }
	const gate = "example.com/served"
	for _, tt := range []struct {
		name string
		in   observed
		gate bool
		want string
	}{
		{"no network", observed{mains: list(waiting("a")), networkError: "no free address"},
			false, "Pending; PodReadyToStartContainers: FailedCreatePodSandBox no free address; " +
				"ContainersReady: ContainersNotReady containers with unready status: a; Ready: ContainersNotReady containers with unready status: a"},
		{"starting", observed{podIPs: addrs("10.1.0.2"), mains: list(waiting("a"))},
			false, "Pending; ContainersReady: ContainersNotReady containers with unready status: a; Ready: ContainersNotReady containers with unready status: a"},
		{"initialising", observed{podIPs: addrs("10.1.0.2"), inits: list(exited("i", 0), running("j", false)), mains: list(waiting("a"))},
			false, "Pending; Initialized: ContainersNotInitialized containers with incomplete status: j; " +
				"ContainersReady: ContainersNotReady containers with unready status: a; Ready: ContainersNotReady containers with unready status: a"},
		{"one of two is ready", observed{podIPs: addrs("10.1.0.2"), mains: list(running("a", true), running("b", false))},
			false, "Running; ContainersReady: ContainersNotReady containers with unready status: b; Ready: ContainersNotReady containers with unready status: b"},
		{"ready", observed{podIPs: addrs("10.1.0.2"), mains: list(running("a", true))}, false, "Running"},
		{"gated", observed{podIPs: addrs("10.1.0.2"), mains: list(running("a", true))},
			true, `Running; Ready: ReadinessGatesNotReady condition "example.com/served" is not True`},
		{"crashing", observed{podIPs: addrs("10.1.0.2"), mains: list(crashing("a"))},
			false, "Running; ContainersReady: ContainersNotReady containers with unready status: a; Ready: ContainersNotReady containers with unready status: a"},
		{"succeeded", observed{podIPs: addrs("10.1.0.2"), mains: list(exited("a", 0)), finished: true},
			false, "Succeeded; ContainersReady: PodCompleted ; Ready: PodCompleted "},
		{"failed", observed{podIPs: addrs("10.1.0.2"), mains: list(exited("a", 0), exited("b", 2)), finished: true},
			false, "Failed; ContainersReady: ContainersNotReady containers with unready status: a, b; Ready: ContainersNotReady containers with unready status: a, b"},
		{"deleted before it started", observed{mains: list(waiting("a")), finished: true},
			false, "Failed; PodReadyToStartContainers: NoNetwork ; ContainersReady: ContainersNotReady containers with unready status: a; " +
				"Ready: ContainersNotReady containers with unready status: a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := testPod("web", "true")
			if tt.gate {
				pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: gate}}
			}
			tt.in.hostIPs = addrs("10.0.0.1")
			if got := summary(podStatus(pod, tt.in, metav1.Now())); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestPodStatusKeepsWhatIsNotItsOwn(t *testing.T) {
	before, now := metav1.Unix(1000, 0), metav1.Unix(2000, 0)
	pod := testPod("web", "true")
	o := observed{hostIPs: addrs("10.0.0.1"), podIPs: addrs("10.1.0.2", "fd00::2"), startTime: before, mains: []corev1.ContainerStatus{running("main", false)}}
	pod.Status = podStatus(pod, o, before)
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: "example.com/served", Status: corev1.ConditionTrue})

	o.startTime = now
	o.mains[0].Ready = true
	got := podStatus(pod, o, now)
	changed := map[corev1.PodConditionType]time.Time{}
	for _, c := range got.Conditions {
		changed[c.Type] = c.LastTransitionTime.Time
	}
	if !changed[corev1.PodReady].Equal(now.Time) || !changed[corev1.PodScheduled].Equal(before.Time) {
		t.Errorf("transition times %v: want Ready at %v, PodScheduled at %v", changed, now, before)
	}
	if !conditionTrue(got.Conditions, "example.com/served") {
		t.Errorf("foreign condition is lost: %v", got.Conditions)
	}
	if !got.StartTime.Equal(&before) || got.PodIP != "10.1.0.2" || len(got.PodIPs) != 2 || got.HostIPs[0].IP != "10.0.0.1" {
		t.Errorf("status %+v", got)
	}
}

func TestStatusPatch(t *testing.T) {
	pod := testPod("web", "true")
	if patch, err := statusPatch(pod, pod.Status); patch != nil || err != nil {
		t.Errorf("patch of equal statuses: %s, %v", patch, err)
	}
	patch, err := statusPatch(pod, corev1.PodStatus{Phase: corev1.PodRunning})
	if want := `{"metadata":{"uid":"web-uid"},"status":{"phase":"Running"}}`; string(patch) != want || err != nil {
		t.Errorf("patch %s, %v, want %s", patch, err, want)
	}
}

// TestInitialStatuses is a restart of the agent: a ran, b had ended, c is new.
func TestInitialStatuses(t *testing.T) {
	specs := []corev1.Container{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	old := []corev1.ContainerStatus{exited("b", 3), running("a", true)}
	old[1].RestartCount = 4
	got := initialStatuses(specs, old, "ContainerCreating", false)
	if a := got[0]; a.RestartCount != 5 || a.Ready || a.State.Waiting == nil || a.LastTerminationState.Terminated.ExitCode != 137 {
		t.Errorf("a container that died with the agent: %+v", a)
	}
	if b := got[1]; b.RestartCount != 0 || b.State.Terminated == nil {
		t.Errorf("a container that had ended: %+v", b)
	}
	if c := got[2]; c.Name != "c" || c.State.Waiting.Reason != "ContainerCreating" {
		t.Errorf("a new container: %+v", c)
	}
	got = initialStatuses(specs, old, "ContainerCreating", true)
	if a := got[0]; a.RestartCount != 4 || a.State.Terminated == nil || a.State.Terminated.ExitCode != 137 {
		t.Errorf("a container that died with the agent and may not run again: %+v", a)
	}
}
