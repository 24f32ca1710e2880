package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
)

// podsDir holds a directory per pod below Config.Dir.
const podsDir = "pods"

// podRuntime is what all pods of the node share.
type podRuntime struct {
	client   kubernetes.Interface
	recorder record.EventRecorder
	network  *podNetwork
	launcher *launcher
	prober   *prober
	images   imageTable
	config   Config
}

// stopping is how a pod ends: term asks its containers to end, kill, later, ends them.
type stopping struct {
	term, kill context.Context
}

// podWorker runs one pod from its binding to its deletion. One goroutine, run, goes through the pod's life step by
// step; the manager tells it what happens to the object by observe and vanish.
type podWorker struct {
	*podRuntime
	uid       types.UID
	namespace string
	name      string
	spec      *corev1.PodSpec // as first seen
	dir       string          // of the pod's logs and volumes
	born      time.Time
	logs      map[string]*containerLog // by container name
	volumes   *podVolumes
	log       *slog.Logger

	life                               context.Context // until the agent stops or the pod object is gone
	stop                               stopping        // children of life
	cancelLife, cancelKill, cancelTerm context.CancelFunc
	changed                            chan struct{} // of 1: the status has to be published

	mu    sync.Mutex
	pod   *corev1.Pod // the newest that the API server has shown
	netNS string      // path
	facts podFacts
	seen  observed
	grace *time.Timer // calls cancelKill at deadline; nil until the pod is being deleted
	due   time.Time   // when grace fires
}

// newPodWorker returns a worker whose life ends with ctx at the latest.
func newPodWorker(ctx context.Context, r *podRuntime, pod *corev1.Pod) *podWorker {
	w := &podWorker{
		podRuntime: r,
		uid:        pod.UID,
		namespace:  pod.Namespace,
		name:       pod.Name,
		spec:       &pod.Spec,
		dir:        filepath.Join(r.config.Dir, podsDir, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID)),
		born:       time.Now(),
		logs:       map[string]*containerLog{},
		log:        r.config.Log.With("pod", pod.Namespace+"/"+pod.Name),
		changed:    make(chan struct{}, 1),
		pod:        pod,
		facts:      podFacts{hostname: hostname(pod), hostIPs: r.config.NodeIPs},
	}
	w.volumes = &podVolumes{dir: filepath.Join(w.dir, volumesDir), specs: pod.Spec.Volumes, ready: map[string]bool{}}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		w.logs[c.Name] = &containerLog{path: filepath.Join(w.dir, c.Name+".log")}
	}
	w.life, w.cancelLife = context.WithCancel(ctx)
	w.stop.kill, w.cancelKill = context.WithCancel(w.life)
	w.stop.term, w.cancelTerm = context.WithCancel(w.stop.kill)
	w.seen = firstSight(pod, r.config.NodeIPs)
	return w
}

// hostname returns the UTS host name of a pod (PodSpec.hostname and hostNetwork).
func hostname(pod *corev1.Pod) string {
	name := pod.Name
	switch {
	case pod.Spec.HostNetwork:
		name = pod.Spec.NodeName
	case pod.Spec.Hostname != "":
		name = pod.Spec.Hostname
	}
	return name[:min(63, len(name))] // a DNS label, and the kernel takes 64
}

// firstSight is what is known of a pod before anything of it runs.
func firstSight(pod *corev1.Pod, nodeIPs []netip.Addr) observed {
	waiting := "ContainerCreating"
	if len(pod.Spec.InitContainers) > 0 {
		waiting = "PodInitializing"
	}
	never := pod.Spec.RestartPolicy == corev1.RestartPolicyNever
	return observed{
		hostIPs:   nodeIPs,
		startTime: metav1.Now(),
		inits:     initialStatuses(pod.Spec.InitContainers, pod.Status.InitContainerStatuses, waiting, never),
		mains:     initialStatuses(pod.Spec.Containers, pod.Status.ContainerStatuses, waiting, never),
	}
}

// initialStatuses continues the statuses that an earlier agent wrote.
func initialStatuses(specs []corev1.Container, old []corev1.ContainerStatus, waiting string, never bool) []corev1.ContainerStatus {
	statuses := make([]corev1.ContainerStatus, len(specs))
	for i, c := range specs {
		s := corev1.ContainerStatus{Name: c.Name}
		if k := slices.IndexFunc(old, func(o corev1.ContainerStatus) bool { return o.Name == c.Name }); k >= 0 {
			s = *old[k].DeepCopy()
		}
		resume(&s, waiting, never)
		s.Image, s.ImageID = c.Image, "lab://"+ImageName(c.Image)
		s.Ready, s.Started = false, new(false)
		statuses[i] = s
	}
	return statuses
}

// resume continues a container's status: what ran has died with the earlier agent, and what may not run again stays
// as it ended.
func resume(s *corev1.ContainerStatus, waiting string, never bool) {
	if s.State.Running != nil {
		dead := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 137, Signal: 9, Reason: "Error", Message: "the node agent ended",
			StartedAt: s.State.Running.StartedAt, FinishedAt: metav1.Now(), ContainerID: s.ContainerID,
		}}
		if never {
			s.State = dead
			return
		}
		s.LastTerminationState = dead
		s.RestartCount++
	}
	if s.State.Terminated == nil {
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: waiting}}
	}
}

// run is the life of the pod. It returns when nothing of the pod is left on the node.
func (w *podWorker) run() {
	defer w.cancelLife()
	running, end := context.WithCancel(w.life)
	var helpers sync.WaitGroup
	helpers.Go(func() { w.publish(running) })
	box, attached := w.prepare()
	if attached {
		helpers.Go(func() { w.keepVolumes(running) })
		w.runContainers()
	}
	end()
	helpers.Wait()
	w.publishEnd()
	if attached {
		w.detach(box)
	}
	<-w.stop.term.Done() // a pod that ran to completion stays until it is deleted
	w.deleteObject()
	if err := removePodDir(w.dir); err != nil {
		w.log.Error("remove folder of pod", "err", err)
	}
}

// prepare makes the pod's directory and network, trying until it works or the pod is stopped.
func (w *podWorker) prepare() (box sandbox, ok bool) {
	for delay := firstBackOff; w.stop.term.Err() == nil; delay = min(2*delay, lastBackOff) {
		box, err := w.attach()
		if err == nil {
			w.update(func() {
				w.netNS, w.facts.podIPs = box.path(), box.ips
				w.seen.podIPs, w.seen.networkError = box.ips, ""
			})
			return box, true
		}
		w.update(func() { w.seen.networkError = err.Error() })
		w.event(corev1.EventTypeWarning, "FailedCreatePodSandBox", "%v", err)
		sleep(w.stop.term, delay)
	}
	return sandbox{}, false
}

func (w *podWorker) attach() (sandbox, error) {
	if err := os.MkdirAll(w.rootDir(), 0o755); err != nil {
		return sandbox{}, err
	}
	if w.spec.HostNetwork {
		return sandbox{netNS: w.config.NetNS, ips: w.config.NodeIPs}, nil
	}
	return w.network.attach(w.uid)
}

// rootDir is an empty folder, over which containers with volumes mount their root.
func (w *podWorker) rootDir() string { return filepath.Join(w.dir, "root") }

func (w *podWorker) detach(box sandbox) {
	if w.spec.HostNetwork {
		return
	}
	if err := w.network.detach(box); err != nil {
		w.log.Error("remove network of pod", "err", err)
	}
}

// runContainers runs the init containers in order, then the others together, and returns when all have ended.
func (w *podWorker) runContainers() {
	for i := range w.spec.InitContainers {
		c := w.container(&w.spec.InitContainers[i], &w.seen.inits[i])
		c.always = false
		c.run(w.stop)
		if w.stop.term.Err() != nil || !c.succeeded() {
			return
		}
	}
	var running sync.WaitGroup
	for i := range w.spec.Containers {
		c := w.container(&w.spec.Containers[i], &w.seen.mains[i])
		running.Go(func() { c.run(w.stop) })
	}
	running.Wait()
}

func (w *podWorker) container(spec *corev1.Container, status *corev1.ContainerStatus) *container {
	return &container{
		w: w, spec: spec, status: status, log: w.logs[spec.Name],
		always: w.spec.RestartPolicy == corev1.RestartPolicyAlways,
		never:  w.spec.RestartPolicy == corev1.RestartPolicyNever,
	}
}

// observe takes a newer version of the pod object from the API server.
func (w *podWorker) observe(pod *corev1.Pod) {
	w.update(func() { w.adopt(pod) })
	if pod.DeletionTimestamp != nil {
		w.terminate(seconds(pod.DeletionGracePeriodSeconds, w.gracePeriod()))
	}
}

// vanish ends the pod at once: its object is gone.
func (w *podWorker) vanish() { w.cancelLife() }

// terminate begins the pod's graceful end, or hurries the one under way.
func (w *podWorker) terminate(grace time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	due := time.Now().Add(grace)
	switch {
	case w.grace == nil:
		w.grace, w.due = time.AfterFunc(grace, w.cancelKill), due
	case due.Before(w.due):
		w.grace.Reset(grace)
		w.due = due
	}
	w.cancelTerm()
}

// gracePeriod is how long a container may take to end.
func (w *podWorker) gracePeriod() time.Duration {
	return seconds(w.spec.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds*time.Second)
}

func seconds(n *int64, otherwise time.Duration) time.Duration {
	if n == nil {
		return otherwise
	}
	return time.Duration(*n) * time.Second
}

// surroundings returns what a container is started with.
func (w *podWorker) surroundings() (pod *corev1.Pod, facts podFacts, netNS string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod, w.facts, w.netNS
}
