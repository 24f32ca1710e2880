package watcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"sallyport/watcher/objects"
)

// API is the Source that watches an API server.
type API struct {
	o       Options
	factory informers.SharedInformerFactory
	kinds   []*kind
	// patience is how long a kind must be refused before it is denied: denialPatience, but for tests.
	patience time.Duration
}

// A kind is one kind of object being watched.
type kind struct {
	name     string
	resource string // in the path of a request, such as "services"
	informer cache.SharedIndexInformer
	// denied is set when the API server keeps refusing the kind (403) or not knowing it (404): the others do not wait for
	// it any longer.
	denied atomic.Bool
	list   func(*objects.Cluster)   // puts the kind's objects into a Cluster
	same   func(old, next any) bool // says that an update means nothing
	errors *limitedLog
	// refused is when the refusals began that no other answer has interrupted, in Unix nanoseconds; 0 if the last answer
	// was none.
	refused atomic.Int64
}

// NewAPI returns the source of the cluster that config leads to. No request is sent before Run.
func NewAPI(config *rest.Config, o Options) (*API, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "sallyport/" + o.Version
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	a := &API{o: o, patience: denialPatience}
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	httpClient.Transport = failingRequests{httpClient.Transport, a} // around all others: an exec plugin can fail too
	client, err := kubernetes.NewForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	return a, a.connect(client)
}

// connect makes the informers.
func (a *API) connect(client kubernetes.Interface) error {
	f := informers.NewSharedInformerFactory(client, 0)
	a.factory = f
	return errors.Join(
		watch(a, "Namespace", f.Core().V1().Namespaces().Informer(), slimNamespace, nil,
			func(c *objects.Cluster) *[]*corev1.Namespace { return &c.Namespaces }),
		watch(a, "Node", f.Core().V1().Nodes().Informer(), slimNode, sameNode,
			func(c *objects.Cluster) *[]*corev1.Node { return &c.Nodes }),
		watch(a, "Service", f.Core().V1().Services().Informer(), nil, nil,
			func(c *objects.Cluster) *[]*corev1.Service { return &c.Services }),
		watch(a, "EndpointSlice", f.Discovery().V1().EndpointSlices().Informer(), slimEndpointSlice, nil,
			func(c *objects.Cluster) *[]*discoveryv1.EndpointSlice { return &c.EndpointSlices }),
		watch(a, "IngressClass", f.Networking().V1().IngressClasses().Informer(), nil, nil,
			func(c *objects.Cluster) *[]*networkingv1.IngressClass { return &c.IngressClasses }),
		watch(a, "Ingress", f.Networking().V1().Ingresses().Informer(), nil, nil,
			func(c *objects.Cluster) *[]*networkingv1.Ingress { return &c.Ingresses }),
	)
}

// watch adds a kind. slim drops what is not needed from an object, and same says that an update means nothing; either
// may be nil. field is where a Cluster keeps the kind.
func watch[P metav1.Object](a *API, name string, i cache.SharedIndexInformer,
	slim func(P), same func(old, next P) bool, field func(*objects.Cluster) *[]P) error {
	resource, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind{Kind: name})
	a.kinds = append(a.kinds, &kind{
		name:     name,
		resource: resource.Resource,
		informer: i,
		errors:   &limitedLog{log: a.o.Log.With("kind", name)},
		same:     func(old, next any) bool { return same != nil && same(old.(P), next.(P)) },
		list: func(c *objects.Cluster) {
			all := i.GetStore().List()
			typed := make([]P, 0, len(all))
			for _, o := range all {
				typed = append(typed, o.(P))
			}
			*field(c) = typed
		},
	})
	return i.SetTransform(transform(slim))
}

// transform is the cache.TransformFunc of a kind.
func transform[P metav1.Object](slim func(P)) cache.TransformFunc {
	return func(o any) (any, error) {
		p, ok := o.(P)
		if !ok {
			return o, nil // cache.DeletedFinalStateUnknown, whose object was slimmed when it came
		}
		slimMeta(p)
		if slim != nil {
			slim(p)
		}
		return p, nil
	}
}

// Run watches until ctx ends. It can be called once.
func (a *API) Run(ctx context.Context, changed func()) error {
	for _, k := range a.kinds {
		if err := a.prepare(k, changed); err != nil {
			return fmt.Errorf("watch %s: %w", k.name, err)
		}
	}
	a.factory.StartWithContext(ctx)
	var waits sync.WaitGroup
	for _, k := range a.kinds {
		waits.Go(func() {
			select {
			case <-ctx.Done():
			case <-k.informer.HasSyncedChecker().Done():
				changed() // the last event may have come before the cache called itself synced
			}
		})
	}
	<-ctx.Done()
	waits.Wait()
	a.shutdown()
	return nil
}

// shutdownTimeout bounds the wait for informers. They end with Run's context, but one that backs off from an API server
// which is away (reflector.watchList) looks at it only afterwards, up to half a minute later.
const shutdownTimeout = time.Second

func (a *API) shutdown() {
	done := make(chan struct{})
	go func() {
		a.factory.Shutdown()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(shutdownTimeout):
		a.o.Log.Debug("leaving informers that back off")
	}
}

// prepare connects a kind's informer. The handlers only mark that something changed: the caches are listed later, once
// for many changes.
func (a *API) prepare(k *kind, changed func()) error {
	events := a.o.Metrics.events.WithLabelValues(k.name)
	mark := func() {
		events.Inc()
		changed()
	}
	_, err := k.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { mark() },
		DeleteFunc: func(any) { mark() },
		UpdateFunc: func(old, next any) {
			if !k.same(old, next) {
				mark()
			}
		},
	})
	return errors.Join(err, k.informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		a.watchFailed(k, err, changed)
	}))
}

// Objects lists the caches. ok is false until each kind was read once or is denied.
func (a *API) Objects() (_ objects.Cluster, ok bool) {
	c := objects.Cluster{Name: a.o.Cluster}
	for _, k := range a.kinds {
		if !k.informer.HasSynced() && !k.denied.Load() {
			return objects.Cluster{}, false
		}
		k.list(&c)
	}
	return c, true
}
