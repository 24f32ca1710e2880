package watcher

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// watchFailed is told by the informers why a watch of a kind ended.
func (a *API) watchFailed(k *kind, err error, changed func()) {
	var unreached *url.Error
	if endsNormally(err) || errors.As(err, &unreached) {
		return // an API server that is not reached is seen by failingRequests
	}
	a.failed(k, err)
	if isDenied(err) && k.denied.CompareAndSwap(false, true) {
		changed() // the others need not wait any longer
	}
}

// failed counts and logs a failure to list or watch a kind.
func (a *API) failed(k *kind, err error) {
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
