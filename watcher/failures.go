package watcher

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// watchFailed is told by the informers why a watch of a kind ended.
func (a *API) watchFailed(k *kind, err error, changed func()) {
	var unreached *url.Error
	if endsNormally(err) || errors.As(err, &unreached) {
		return // an API server that is not reached is seen by failingRequests
	}
	a.failed(k, err)
	if isDenied(err) && k.refusedFor(a.patience) && !k.informer.HasSynced() && k.denied.CompareAndSwap(false, true) {
		k.errors.log.Error("kind left out: the API server keeps refusing it")
		changed() // the others need not wait any longer
	}
}

// denialPatience is how long the API server must refuse a kind, without a break, before it is left out. One that is
// starting refuses what it will permit a few seconds later, when it has read the roles, and what is made of such answers
// would take all traffic down.
const denialPatience = 10 * time.Second

// refusedFor says, at a refusal, whether they have been going on for that long.
func (k *kind) refusedFor(patience time.Duration) bool {
	now := time.Now()
	k.refused.CompareAndSwap(0, now.UnixNano())
	return now.Sub(time.Unix(0, k.refused.Load())) >= patience
}

// failed counts and logs a failure to list or watch a kind.
func (a *API) failed(k *kind, err error) {
	if !isDenied(err) {
		k.refused.Store(0)
	}
	a.o.Metrics.watchErrors.WithLabelValues(k.name).Inc()
	k.errors.report(err)
}

// endsNormally says whether a watch ended as they all do from time to time.
func endsNormally(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// isDenied says whether the API server refuses the kind to us, or does not know it. The informer keeps asking.
func isDenied(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsNotFound(err) }

// failingRequests reports the requests that bring no answer. Informers try those again without a word, so that an API
// server that is away would go unseen.
type failingRequests struct {
	http.RoundTripper
	api *API
}

// RoundTrip passes the request on.
func (f failingRequests) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := f.RoundTripper.RoundTrip(r)
	if err != nil && !errors.Is(err, context.Canceled) {
		if k := f.api.kindOf(path.Base(r.URL.Path)); k != nil {
			f.api.failed(k, err)
		}
	}
	return response, err
}

// kindOf returns the kind of a resource, such as "services" in the path of a request, or nil.
func (a *API) kindOf(resource string) *kind {
	for _, k := range a.kinds {
		if k.resource == resource {
			return k
		}
	}
	return nil
}
