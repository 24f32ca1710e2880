package status

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"sallyport/watcher/model"
)

// LeaseName is the name of the Lease, in Options.LeaseNamespace.
const LeaseName = "sallyport"

// The times of the election are those of Kubernetes' own controllers: a leader that cannot renew stops writing after
// renewDeadline, before others take the Lease after leaseDuration.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// releaseTimeout bounds each of the two requests of a release: a stop must not wait for an API server that is away.
const releaseTimeout = time.Second

// elect leads whenever nobody else does, until ctx ends; then it releases the Lease.
func (w *Writer) elect(ctx context.Context) error {
	lock := &lease{w: w, releasing: func() bool { return ctx.Err() != nil }, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: w.o.LeaseNamespace, Name: LeaseName},
		Client:     w.client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: w.identity},
	}}
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
			ReleaseOnCancel: true, Name: LeaseName,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: w.won, OnStoppedLeading: w.lost},
		})
		if err != nil {
			return fmt.Errorf("set up the election of the writer of status: %w", err)
		}
		elector.Run(klog.NewContext(ctx, klog.Logger{})) // silent: lease reports what matters
	}
	return nil
}

// A term is the time from winning the Lease to losing it.
type term struct {
	ctx      context.Context // ends with it
	end      context.CancelFunc
	attempts map[model.ObjectRef]attempt // guarded by Writer.writing
}

// won begins a term, unless it is over already: client-go calls won from a goroutine of its own.
func (w *Writer) won(ctx context.Context) {
	if w.begin(ctx) {
		w.problems.renewAll()
		w.o.Changed()
	}
}

func (w *Writer) begin(ctx context.Context) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil || w.resigned {
		return false
	}
	w.term = &term{attempts: map[model.ObjectRef]attempt{}}
	w.term.ctx, w.term.end = context.WithCancel(ctx)
	w.metrics.leader.Set(1)
	w.log.Info("this edge writes status and events now", "identity", w.identity)
	return true
}

// lost ends a term, if there is one.
func (w *Writer) lost() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.term == nil {
		return
	}
	w.term.end()
	w.term = nil
	w.metrics.leader.Set(0)
	w.log.Info("this edge writes status and events no more", "identity", w.identity)
}

// resign ends the term for good and returns when nothing is being written any more.
func (w *Writer) resign() {
	w.mu.Lock()
	w.resigned = true
	w.mu.Unlock()
	w.lost()
	w.writing.Lock()
	defer w.writing.Unlock()
	w.again.Stop()
}

// leading returns the present term, or nil.
func (w *Writer) leading() *term {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.term
}

// within returns a context that ends with ctx or with the term.
func (t *term) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(t.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

func (w *Writer) saw(holder string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holder = holder
}

// lease is the lock, watched: it learns who holds the Lease and reports why it cannot be had, which the elector says to
// its log only, every 2 s.
type lease struct {
	resourcelock.Interface
	w         *Writer
	releasing func() bool

	// What fails, and when it did last; used by the elector's goroutine alone.
	failing access
	failed  time.Time
}

// An access is what a request does with the Lease. Who may read it may not be permitted to write it.
type access string

const (
	reading access = "read"
	writing access = "write"
)

// Get implements resourcelock.Interface.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	record, raw, err := l.Interface.Get(ctx)
	switch {
	case err == nil:
		l.w.saw(record.HolderIdentity)
		l.report(reading, nil)
	case !apierrors.IsNotFound(err): // then it is made
		l.report(reading, err)
	}
	return record, raw, err
}

// Create implements resourcelock.Interface.
func (l *lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	err := l.Interface.Create(ctx, record)
	l.written(record, err)
	return err
}

// Update implements resourcelock.Interface.
func (l *lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	err := l.Interface.Update(ctx, record)
	l.written(record, err)
	return err
}

// bound limits what a request may take.
func (l *lease) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if l.releasing() {
		return context.WithTimeout(ctx, releaseTimeout)
	}
	return context.WithTimeout(ctx, requestTimeout)
}

func (l *lease) written(record resourcelock.LeaderElectionRecord, err error) {
	switch {
	case err == nil:
		l.w.saw(record.HolderIdentity)
		l.report(writing, nil)
	case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err): // else another edge was quicker
		l.report(writing, err)
	}
}

// report tells of failures once, and of their end. A namespace that does not exist is as good as a refusal. That the Lease can
// be read is no news of what cannot be written, unless that was not tried for long, as another edge holds it.
func (l *lease) report(a access, err error) {
	switch {
	case err == nil && a == reading && l.failing == writing && time.Since(l.failed) < leaseDuration:
		return
	case err == nil:
		l.w.refused.permit(resourceLease)
		l.failing = ""
		return
	case apierrors.IsForbidden(err) || apierrors.IsNotFound(err):
		l.w.refused.refuse(resourceLease, err)
	}
	if l.failing == "" && !l.releasing() {
		l.w.log.Warn("lease of the writer of status cannot be had, trying again", "access", string(a), "lease", l.Describe(), "err", err)
	}
	l.failing, l.failed = a, time.Now()
}
