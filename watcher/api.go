package watcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"sallyport/watcher/objects"
)

// Options configure a Source.
type Options struct {
	// Cluster is the cluster's name in the configuration, empty if there is only one.
	Cluster string
	// Version goes into the User-Agent of requests to the API server: "sallyport/VERSION".
	Version string
	Log     *slog.Logger
	Metrics *Metrics // from NewMetrics
}

// API is the Source that watches an API server.
type API struct {
	o       Options
	factory informers.SharedInformerFactory
	kinds   []*kind
}

// A kind is one kind of object being watched.
type kind struct {
	name     string
	informer cache.SharedIndexInformer
	// denied is set when the API server refuses the kind (403) or does not know it (404): the others do not wait for it.
	denied atomic.Bool
	list   func(*objects.Cluster)   // puts the kind's objects into a Cluster
	same   func(old, next any) bool // says that an update means nothing
	errors *limitedLog
}

// NewAPI returns the source of the cluster that config leads to. No request is sent before Run.
func NewAPI(config *rest.Config, o Options) (*API, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "sallyport/" + o.Version
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	return newAPI(client, o)
}

func newAPI(client kubernetes.Interface, o Options) (*API, error) {
	f := informers.NewSharedInformerFactory(client, 0)
	a := &API{o: o, factory: f}
	err := errors.Join(
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
	return a, err
}

// watch adds a kind. slim drops what is not needed from an object, and same says that an update means nothing; either
// may be nil. field is where a Cluster keeps the kind.
func watch[P metav1.Object](a *API, name string, i cache.SharedIndexInformer,
	slim func(P), same func(old, next P) bool, field func(*objects.Cluster) *[]P) error {
	a.kinds = append(a.kinds, &kind{
		name:     name,
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
	a.factory.Shutdown() // waits for the informers, which end with ctx
	return nil
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
	failures := a.o.Metrics.watchErrors.WithLabelValues(k.name)
	return errors.Join(err, k.informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		if endsNormally(err) {
			return
		}
		failures.Inc()
		k.errors.report(err)
		if isDenied(err) && k.denied.CompareAndSwap(false, true) {
			changed() // the others need not wait any longer
		}
	}))
}

// endsNormally says whether a watch ended as they all do from time to time.
func endsNormally(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// isDenied says whether the API server refuses the kind to us, or does not know it. The informer keeps asking.
func isDenied(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsNotFound(err) }

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
