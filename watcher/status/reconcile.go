package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
)

const (
	// roundTime bounds one Reconcile, because the snapshot it works on grows old. What is left is done by the next one.
	roundTime = 5 * time.Second
	// holdBack is how long a write is not repeated as long as the API server shows the same. After success that is the
	// watch that lags, or another controller that writes against us; after an error, others come first.
	holdBack = 10 * time.Second
)

// An attempt is a write that was tried.
type attempt struct {
	change  change
	err     error
	until   time.Time // not repeated before
	settled bool      // repeating would change nothing, however long it is
}

// Reconcile brings the status of the cluster's objects in line with s, where they differ. It does nothing unless this
// edge leads, and nothing for a snapshot that is Stale. Objects that cannot be written do not hold up the others: the
// error is a model.PartialError.
func (w *Writer) Reconcile(ctx context.Context, s *model.Snapshot) error {
	t := w.leading()
	if s.Stale || t == nil {
		return nil
	}
	ctx, done := t.within(ctx)
	defer done()
	w.writing.Lock()
	defer w.writing.Unlock()
	due := changes(s, w.o.Cluster, w.o.IngressAddresses())
	t.forget(due)
	t.failedLast(due)
	err := w.writeAll(ctx, t, due)
	if ctx.Err() != nil {
		return nil // we lead no more, or are stopping: what failed was cut short
	}
	return model.Partial(err)
}

// writeAll writes what is due, for one round.
func (w *Writer) writeAll(ctx context.Context, t *term, due []change) error {
	var failed failures
	end := time.Now().Add(roundTime)
	for _, c := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.uid = w.uid(c.seen.Ref)
		if held, err := w.heldBack(t, c); held {
			failed.add(c, err)
			continue
		}
		if time.Now().After(end) {
			w.o.Changed()
			break
		}
		if err := w.writes.Wait(ctx); err != nil {
			return err
		}
		err := w.write(ctx, t, c)
		if concernsAll(err) {
			return fmt.Errorf("write the status of %v: %w", c.seen.Ref, err)
		}
		failed.add(c, err)
	}
	return failed.err()
}

// heldBack says whether a change is not to be tried now, and what became of it when it was.
func (w *Writer) heldBack(t *term, c change) (bool, error) {
	if err := w.refused.pausing(c.resource()); err != nil {
		return true, err
	}
	a, tried := t.attempts[c.seen.Ref]
	if !tried || !a.change.equal(c) {
		return false, nil
	}
	if wait := time.Until(a.until); !a.settled && wait > 0 {
		w.again.Reset(wait)
		return true, a.err
	}
	return a.settled, a.err
}

// forget drops the attempts that hold nothing back any more.
func (t *term) forget(due []change) {
	still := make(map[model.ObjectRef]bool, len(due))
	for _, c := range due {
		still[c.seen.Ref] = true
	}
	for ref, a := range t.attempts {
		if !still[ref] && (a.settled || time.Now().After(a.until)) {
			delete(t.attempts, ref)
		}
	}
}

// failedLast puts the changes that were tried in vain behind the others: an error that is taken for one of all objects, such as a
// refusal, may be one of the first alone, which a policy of its namespace refuses, or times out.
func (t *term) failedLast(due []change) {
	failed := func(c change) int {
		if t.attempts[c.seen.Ref].err != nil {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(due, func(a, b change) int { return failed(a) - failed(b) })
}

// write makes one change and keeps how it went.
func (w *Writer) write(ctx context.Context, t *term, c change) error {
	released, err := w.apply(ctx, c)
	result := "success"
	switch {
	case err == nil:
		w.refused.permit(c.resource())
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err) || madeAnew(err):
		result, err = "outdated", nil // the object or its writer has changed: there will be a new snapshot
	case apierrors.IsForbidden(err):
		result = "forbidden"
		w.refused.refuse(c.resource(), err)
		err = w.refused.pausing(c.resource())
	default:
		result = "error"
	}
	w.metrics.writes.WithLabelValues(c.seen.Ref.Kind, result).Inc()
	t.attempts[c.seen.Ref] = attempt{change: c, err: err, until: time.Now().Add(holdBack), settled: released}
	return err
}

// madeAnew says whether the API server has another object of the same name: it takes our metadata.uid for a change.
func madeAnew(err error) bool {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) || answer.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(answer.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == "metadata.uid" })
}

// concernsAll says whether an error is one of the API server as a whole, so that other writes would meet the same.
func concernsAll(err error) bool {
	var answer apierrors.APIStatus
	return err != nil && (!errors.As(err, &answer) || apierrors.IsUnauthorized(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err))
}

// uid returns the object's metadata.uid, or "".
func (w *Writer) uid(ref model.ObjectRef) string {
	if w.o.UID == nil {
		return ""
	}
	return w.o.UID(ref)
}

// failures are the errors of one round: the first few in full, and how many more there are. Objects that fail alike, as
// those of a resource that is refused, count once.
type failures struct {
	shown []error
	more  int
}

// failuresShown bounds the text of an error that 10,000 objects may have a part in.
const failuresShown = 5

func (f *failures) add(c change, err error) {
	switch {
	case err == nil:
		return
	case !apierrors.IsForbidden(err):
		err = fmt.Errorf("write the status of %v: %w", c.seen.Ref, err)
	case slices.ContainsFunc(f.shown, func(e error) bool { return e.Error() == err.Error() }):
		return
	}
	if len(f.shown) == failuresShown {
		f.more++
		return
	}
	f.shown = append(f.shown, err)
}

func (f *failures) err() error {
	if f.more > 0 {
		return errors.Join(append(f.shown, fmt.Errorf("and %d more", f.more))...)
	}
	return errors.Join(f.shown...)
}
