package watcher

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"

	"sallyport/watcher/objects"
)

// API is the Source that watches an API server. Where Options name a kubeconfig it follows its files: when they change,
// another connection is made beside the old one, and takes over when it has read everything.
type API struct {
	o        Options
	identity *identity
	current  atomic.Pointer[connection]
	next     atomic.Pointer[connection] // the one that is to take over, or nil
}

// NewAPI returns the source of the cluster that config leads to. No request is sent before Run.
func NewAPI(config *rest.Config, o Options) (*API, error) {
	a := &API{o: o, identity: new(identity)}
	c, err := newConnection(config, o, a.identity)
	if err != nil {
		return nil, err
	}
	a.use(c)
	return a, nil
}

// use makes c the connection whose objects are served.
func (a *API) use(c *connection) {
	if old := a.current.Swap(c); old != nil {
		old.active.Store(false)
	}
	c.active.Store(true)
	c.showHealth()
	a.showExpiry()
}

// How often the kubeconfig's files are looked at, and the end of the credentials.
const (
	followInterval = time.Second
	expiryInterval = time.Minute
)

// Run watches until ctx ends. It can be called once.
func (a *API) Run(ctx context.Context, changed func()) error {
	f := newFollower(a, changed)
	f.begin(ctx, a.current.Load())
	defer f.end()
	look, expiry := time.NewTicker(followInterval), time.NewTicker(expiryInterval)
	defer look.Stop()
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			f.look(ctx)
		case <-f.ready:
			f.takeOver()
		case <-expiry.C:
			a.showExpiry()
		}
	}
}

// showExpiry sets the metric.
func (a *API) showExpiry() {
	if at := credentialExpiry(a.current.Load().config); !at.IsZero() {
		a.o.Metrics.expiry.WithLabelValues(a.o.label()).Set(seconds(at))
	} else {
		a.o.Metrics.expiry.DeleteLabelValues(a.o.label())
	}
}

// Objects lists the caches. ok is false until each kind and each Secret that is wanted was read once or is denied, and,
// for a second at most, while a Secret that is wanted anew may come.
func (a *API) Objects() (_ objects.Cluster, ok bool) {
	c, ok := a.current.Load().Objects()
	if !ok {
		return objects.Cluster{}, false
	}
	c.Conflict, c.Stale = a.conflict()
	return c, true
}

// conflict says why objects are not taken that are another cluster's. current says that those being served are not
// followed any longer by that.
func (a *API) conflict() (why string, current bool) {
	if why = a.current.Load().conflict(); why != "" {
		return why, true
	}
	if next := a.next.Load(); next != nil {
		return next.conflict(), false
	}
	return "", false
}

// UID returns the UID of an object that is cached, or "". Secrets are not looked for.
func (a *API) UID(kind, namespace, name string) string {
	return a.current.Load().uid(kind, namespace, name)
}
