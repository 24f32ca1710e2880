package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// requestTimeout bounds a request: a server that is frozen keeps its connections, and the next try may find another.
const requestTimeout = 5 * time.Second

// update changes what the worker knows of the pod, and has its status published.
func (w *podWorker) update(change func()) {
	w.mu.Lock()
	change()
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default: // the publisher has yet to take the last change, and will see this one too
	}
}

// adopt keeps the newer of the pod known and pod. The caller holds mu.
func (w *podWorker) adopt(pod *corev1.Pod) {
	order, err := resourceversion.CompareResourceVersion(pod.ResourceVersion, w.pod.ResourceVersion)
	if err != nil || order > 0 {
		w.pod = pod
	}
}

// publish keeps the pod's status in the API server true until ctx ends.
func (w *podWorker) publish(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		}
		if !w.retry(ctx, "publish status of pod", w.publishOnce) {
			return
		}
	}
}

// publishEnd publishes the pod's last status. A pod with finalizers, like a Job's, outlives its deletion, and its
// phase must be final by then.
func (w *podWorker) publishEnd() {
	w.mu.Lock()
	w.seen.finished = true
	w.mu.Unlock()
	w.retry(w.life, "publish last status of pod", w.publishOnce)
}

// deleteObject ends the graceful deletion of the pod object.
func (w *podWorker) deleteObject() {
	now := metav1.DeleteOptions{GracePeriodSeconds: new(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(w.uid))}
	w.retry(w.life, "delete pod", func(ctx context.Context) error {
		return w.client.CoreV1().Pods(w.namespace).Delete(ctx, w.name, now)
	})
}

// retry calls the API server until it works. It returns false if ctx ends or the pod object is no longer there.
func (w *podWorker) retry(ctx context.Context, what string, call func(context.Context) error) bool {
	for delay := firstBackOff; ; delay = min(2*delay, lastBackOff) {
		err := within(ctx, call)
		if err == nil {
			return true
		}
		if ctx.Err() != nil || apierrors.IsNotFound(err) {
			return false
		}
		w.log.Error("request failed", "request", what, "retry", delay, "err", err)
		if !sleep(ctx, delay) {
			return false
		}
	}
}

// within gives one call to the API server requestTimeout.
func within(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return call(ctx)
}

// publishOnce patches the pod's status if it differs from what the API server has shown.
func (w *podWorker) publishOnce(ctx context.Context) error {
	w.mu.Lock()
	pod := w.pod
	status := podStatus(pod, w.seen, metav1.Now())
	w.mu.Unlock()
	patch, err := statusPatch(pod, status)
	if err != nil || patch == nil {
		return err
	}
	pod, err = w.client.CoreV1().Pods(w.namespace).Patch(ctx, w.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.adopt(pod)
	return nil
}

// statusPatch returns the patch from pod's status to status, nil if they are equal. It names the UID, so that it
// fails on a later pod of the same name.
func statusPatch(pod *corev1.Pod, status corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, err
	}
	uid := metav1.ObjectMeta{UID: pod.UID}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: uid, Status: status})
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compute status patch: %w", err)
	}
	if string(patch) == fmt.Sprintf(`{"metadata":{"uid":%q}}`, pod.UID) {
		return nil, nil
	}
	return patch, nil
}

// event records an Event on the pod.
func (w *podWorker) event(kind, reason, format string, args ...any) {
	w.mu.Lock()
	pod := w.pod
	w.mu.Unlock()
	w.recorder.Eventf(pod, kind, reason, format, args...)
}
