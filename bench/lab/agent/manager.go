package agent

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// manager has one podWorker for each pod that is bound to the node.
type manager struct {
	ctx     context.Context // of all workers
	runtime *podRuntime
	running sync.WaitGroup

	mu      sync.Mutex
	workers map[types.UID]*podWorker
}

func newManager(ctx context.Context, r *podRuntime) *manager {
	return &manager{ctx: ctx, runtime: r, workers: map[types.UID]*podWorker{}}
}

// run runs the node's pods until the manager's context ends, and returns when nothing of them is left.
func (m *manager) run() error {
	r := m.runtime
	onNode := fields.OneTermEqualSelector("spec.nodeName", r.config.Node).String()
	factory := informers.NewSharedInformerFactoryWithOptions(r.client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = onNode }))
	informer := factory.Core().V1().Pods().Informer()
	if _, err := informer.AddEventHandler(m); err != nil {
		return fmt.Errorf("watch pods of node %s: %w", r.config.Node, err)
	}
	factory.StartWithContext(m.ctx)
	<-m.ctx.Done()
	factory.Shutdown()
	m.running.Wait()
	return nil
}

// OnAdd implements [cache.ResourceEventHandler].
func (m *manager) OnAdd(obj any, _ bool) { m.observe(obj.(*corev1.Pod)) }

// OnUpdate implements [cache.ResourceEventHandler]. A name may have got another pod between two events.
func (m *manager) OnUpdate(before, after any) {
	if old := before.(*corev1.Pod); old.UID != after.(*corev1.Pod).UID {
		m.forget(old.UID)
	}
	m.observe(after.(*corev1.Pod))
}

// OnDelete implements [cache.ResourceEventHandler].
func (m *manager) OnDelete(obj any) {
	if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = unknown.Obj
	}
	m.forget(obj.(*corev1.Pod).UID)
}

// observe hands the pod to its worker. A pod that has ended gets none, unless it has yet to be deleted.
func (m *manager) observe(pod *corev1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return
	}
	w := m.workers[pod.UID]
	if w == nil {
		if ended(pod) && pod.DeletionTimestamp == nil {
			return
		}
		w = newPodWorker(m.ctx, m.runtime, pod)
		m.workers[pod.UID] = w
		defer m.running.Go(w.run) // after observe: a pod that is being deleted already must not start
	}
	w.observe(pod)
}

// find returns the worker of the pod of that name, nil if there is none. Where a name was given to another pod before
// the first is gone, it is the newer one's.
func (m *manager) find(namespace, name string) *podWorker {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found *podWorker
	for _, w := range m.workers {
		if w.namespace == namespace && w.name == name && (found == nil || found.born.Before(w.born)) {
			found = w
		}
	}
	return found
}

func (m *manager) forget(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.workers[uid]; w != nil {
		w.vanish()
		delete(m.workers, uid)
	}
}

// ended says whether nothing of the pod will run again.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
