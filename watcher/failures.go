package watcher

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// answered takes note of how a request for a kind went.
func (c *connection) answered(ctx context.Context, k *kind, err error) {
	switch {
	case err != nil && (ctx.Err() != nil || endsNormally(err)):
		return
	case err != nil:
		c.failed(k, err)
	default:
		if k.refusal.permit() {
			k.log.log.Info("kind is permitted again")
			c.notify()
		}
	}
	c.showHealth()
}

// failed counts and logs a failure to list or watch a kind.
func (c *connection) failed(k *kind, err error) {
	k.established.Store(false)
	c.o.Metrics.watchErrors.WithLabelValues(k.name).Inc()
	var unreached *url.Error
	if !errors.As(err, &unreached) && !apierrors.IsUnauthorized(err) {
		k.log.report(err) // else it is no answer to any kind: the gate tells it once
	}
	if isDenied(err) {
		c.refused(k, err)
	} else {
		k.refusal.interrupt()
	}
}

// denialPatience is how long the API server must refuse a kind, without a break, before it is left out. One that is
// starting refuses what it will permit a few seconds later, when it has read the roles, and what is made of such answers
// would take all traffic down. What has been read stays, so that later on there is nothing to wait for.
const denialPatience = 10 * time.Second

// refused takes note of a refusal.
func (c *connection) refused(k *kind, err error) {
	code, patience, effect := http.StatusForbidden, c.patience, "left out"
	if apierrors.IsNotFound(err) {
		code = http.StatusNotFound
	}
	if k.informer.HasSynced() {
		effect = "stays as it was read"
	}
	if k.informer.HasSynced() || c.complete.Load() {
		patience = 0
	}
	k.refusal.refuse(code, patience, func() {
		k.log.log.Error("kind refused by the API server", "code", code, "effect", effect)
		c.notify() // the others need not wait any longer
	})
}

// A refusal is how the API server's refusals of a kind stand.
type refusal struct {
	mu    sync.Mutex
	timer *time.Timer // runs since the first refusal that no other answer has interrupted
	code  int         // HTTP status code, 0 until the patience is over
}

// refuse takes note of a refusal. The first one makes the kind denied after patience, and then calls denied.
func (r *refusal) refuse(code int, patience time.Duration, denied func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(patience, func() {
		r.mu.Lock()
		due := r.timer == timer
		if due {
			r.code = code
		}
		r.mu.Unlock()
		if due {
			denied()
		}
	})
	r.timer = timer
}

// interrupt takes note of a failure that is no refusal: the patience starts again. What is denied stays so.
func (r *refusal) interrupt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.code == 0 {
		r.stop()
	}
}

// permit takes note of a good answer, and says whether the kind was denied.
func (r *refusal) permit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.code != 0
	r.stop()
	r.code = 0
	return was
}

func (r *refusal) stop() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// denied returns the HTTP status code by which the kind is denied, or 0.
func (r *refusal) denied() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.code
}

// endsNormally says whether a watch ended as they all do from time to time.
func endsNormally(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// isDenied says whether the API server refuses the kind to us, or does not know it. The informer keeps asking.
func isDenied(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsNotFound(err) }
