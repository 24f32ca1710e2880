package status

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sallyport/watcher/model"
)

const (
	// renewAfter is how often the Event of a Problem that lasts is renewed: the API server keeps Events for an hour
	// (kube-apiserver --event-ttl).
	renewAfter = 30 * time.Minute
	// retryEventAfter is when an Event that could not be sent is tried again, such as for an object not listed yet.
	retryEventAfter = time.Minute
	// eventBatch is how many Events are picked at a time. Those that are solved before their turn are not sent.
	eventBatch = eventsBurst
)

// problems are the Problems that stand, and when the Event of each is due. Their number, not a queue's length, bounds the
// memory: a Problem waits for its turn, the one that has waited longest comes first.
type problems struct {
	wake chan struct{} // of capacity 1: there may be something due

	mu       sync.Mutex
	reported []model.Problem // as given to Report
	standing map[model.Problem]bool
	next     map[model.Problem]turn // the past if missing. Outlives a Problem that comes and goes
}

// A turn is when the Event of a Problem is due next.
type turn struct {
	at  time.Time
	uid string // of the object that the last one was about
}

// Report says which Problems there are; those of before that are missing are solved. Only the leader sends Events, and
// one that becomes the leader sends what stands. list must not be modified afterwards.
func (w *Writer) Report(list []model.Problem) {
	p := &w.problems
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(list, p.reported) {
		return
	}
	p.reported = list
	stood := p.standing
	p.standing = make(map[model.Problem]bool, len(list))
	for _, problem := range list {
		if problem.Object.Cluster != w.o.Cluster || apiVersions[problem.Object.Kind] == "" {
			continue
		}
		p.standing[problem] = true
		if last := p.next[problem].uid; last != "" && !stood[problem] && last != w.uid(problem.Object) {
			delete(p.next, problem) // the object was made anew
		}
	}
	p.notify()
}

// notify wakes sendEvents.
func (p *problems) notify() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// renewAll makes the Events of all Problems due: a predecessor may have sent them long ago.
func (p *problems) renewAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = map[model.Problem]turn{}
	p.notify()
}

// stands says whether a Problem is not solved yet.
func (p *problems) stands(problem model.Problem) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.standing[problem]
}

// postpone sets when the Event of a Problem is due next. uid is that of its object.
func (p *problems) postpone(problem model.Problem, uid string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next[problem] = turn{time.Now().Add(d), uid}
}

// due returns the Problems whose Events are due, those that have waited longest first, each namespace in its turn, at most
// eventBatch; and after what time to ask again if there are none.
func (p *problems) due() (batch []model.Problem, pause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	pause = renewAfter
	for problem := range p.standing {
		if wait := p.next[problem].at.Sub(now); wait > 0 {
			pause = min(pause, wait)
			continue
		}
		batch = append(batch, problem)
	}
	for problem, next := range p.next {
		if !p.standing[problem] && next.at.Before(now) {
			delete(p.next, problem)
		}
	}
	slices.SortFunc(batch, func(a, b model.Problem) int {
		if order := p.next[a].at.Compare(p.next[b].at); order != 0 {
			return order
		}
		return a.Compare(b)
	})
	eachNamespaceInTurn(batch)
	return batch[:min(len(batch), eventBatch)], pause
}

// eachNamespaceInTurn puts the first Problem of each namespace before the second of any, and so on: one with thousands must not
// hold up the others for hours.
func eachNamespaceInTurn(list []model.Problem) {
	turn, seen := make(map[model.Problem]int, len(list)), map[string]int{}
	for _, p := range list {
		turn[p] = seen[p.Object.Namespace]
		seen[p.Object.Namespace]++
	}
	slices.SortStableFunc(list, func(a, b model.Problem) int { return turn[a] - turn[b] })
}

// sendEvents sends what is due while this edge leads, until ctx ends.
func (w *Writer) sendEvents(ctx context.Context) {
	for ctx.Err() == nil {
		pause := renewAfter // a new term wakes
		if t := w.leading(); t != nil {
			pause = w.sendDue(ctx, t)
		}
		select {
		case <-ctx.Done():
		case <-w.problems.wake:
		case <-time.After(pause):
		}
	}
}

// sendDue sends the Events that are due, and says after what time there will be others.
func (w *Writer) sendDue(ctx context.Context, t *term) (pause time.Duration) {
	ctx, done := t.within(ctx)
	defer done()
	for {
		batch, pause := w.problems.due()
		if len(batch) == 0 {
			return pause
		}
		for _, problem := range batch {
			if w.refused.pausing(resourceEvent) != nil {
				return refusalPause
			}
			if !w.problems.stands(problem) {
				continue
			}
			if err := w.send(ctx, problem); concernsAll(err) {
				return retryEventAfter // or when the Problems change, or with the next term
			}
		}
	}
}

// send makes the Event of a Problem known, if its object is, and sets when it is due again.
func (w *Writer) send(ctx context.Context, problem model.Problem) error {
	uid := w.uid(problem.Object)
	if uid == "" {
		w.problems.postpone(problem, uid, retryEventAfter)
		return nil
	}
	if err := w.sends.Wait(ctx); err != nil {
		return err
	}
	result, err := w.createOrRenew(ctx, newEvent(problem, uid, w.o.Identity, time.Now()))
	next := renewAfter
	switch {
	case err == nil:
		w.refused.permit(resourceEvent)
	case ctx.Err() != nil:
		return err // cut short
	case apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		result, err = "unknown", nil
	case apierrors.IsForbidden(err):
		result, next = "forbidden", 0
		w.refused.refuse(resourceEvent, err)
	default:
		result, next = "error", retryEventAfter
		w.log.Warn("event cannot be sent, trying again", "object", problem.Object.String(), "err", err)
	}
	w.metrics.events.WithLabelValues(result).Inc()
	w.problems.postpone(problem, uid, next)
	return err
}

// createOrRenew sends an Event. One of the same name says the same, and is from an earlier time, another edge or an
// earlier life of this one: its time and count are renewed. The count is read from the answer to a patch, because get is
// not among our verbs; of two writers at once one counts in vain.
func (w *Writer) createOrRenew(ctx context.Context, e *corev1.Event) (result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	events := w.client.CoreV1().Events(e.Namespace)
	if _, err = events.Create(ctx, e, metav1.CreateOptions{FieldManager: FieldManager}); !apierrors.IsAlreadyExists(err) {
		return "created", err
	}
	patch := func(fields map[string]any) (*corev1.Event, error) {
		body, err := json.Marshal(fields)
		if err != nil {
			return nil, err
		}
		return events.Patch(ctx, e.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
	}
	old, err := patch(map[string]any{"lastTimestamp": e.LastTimestamp, "reportingInstance": e.ReportingInstance})
	if err == nil {
		_, err = patch(map[string]any{"count": old.Count + 1})
	}
	return "renewed", err
}
