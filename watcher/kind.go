package watcher

import (
	"context"
	"errors"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"sallyport/watcher/objects"
)

// A kind is one kind of object being watched, or those Secrets that one watch covers.
type kind struct {
	name     string
	secrets  objects.Name // which Secrets: the name, the namespace, or both may be empty
	informer cache.SharedIndexInformer
	list     func(*objects.Cluster)   // puts the kind's objects into a Cluster
	same     func(old, next any) bool // says that an update means nothing
	log      *limitedLog
	// refusal is set when the API server keeps refusing the kind (403) or not knowing it (404): the others do not wait
	// for it any longer.
	refusal refusal
	// established says that the last watch began, and nothing has failed since.
	established atomic.Bool
}

// A lister is the client of one kind.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (apiwatch.Interface, error)
}

// An apiObject is a pointer to a Kubernetes type.
type apiObject interface {
	metav1.Object
	runtime.Object
}

// watch adds a kind, of which example is an empty object. slim drops what is not needed from an object, and same says
// that an update means nothing; either may be nil. field is where a Cluster keeps the kind.
func watch[P apiObject, L runtime.Object](c *connection, name string, example P, client lister[L],
	slim func(P), same func(old, next P) bool, field func(*objects.Cluster) *[]P) {
	k := &kind{
		name: name,
		log:  &limitedLog{log: c.o.Log.With("kind", name)},
		same: func(old, next any) bool { return same != nil && same(old.(P), next.(P)) },
	}
	k.list = func(c *objects.Cluster) {
		all := k.informer.GetStore().List()
		typed := make([]P, 0, len(all))
		for _, o := range all {
			typed = append(typed, o.(P))
		}
		*field(c) = typed
	}
	c.kinds = append(c.kinds, k)
	inform(c, k, example, client, "", slim)
}

// inform makes the kind's informer. selector, if not empty, is a field selector.
func inform[P apiObject, L runtime.Object](c *connection, k *kind, example P, client lister[L], selector string, slim func(P)) {
	lw := cache.ToListWatcherWithWatchListSemantics(listWatch(c, k, client, selector), c.client)
	k.informer = cache.NewSharedIndexInformerWithOptions(lw, example, cache.SharedIndexInformerOptions{ObjectDescription: k.name})
	err := errors.Join(
		k.informer.SetTransform(transform(slim)),
		// What fails was reported by listWatch.
		k.informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			k.log.log.Debug("watch ended", "err", err)
		}),
	)
	if err != nil {
		panic("BUG: an informer that was never started: " + err.Error())
	}
}

// listWatch sends the informer's requests, and says how they went.
func listWatch[L runtime.Object](c *connection, k *kind, client lister[L], selector string) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			list, err := client.List(ctx, o)
			c.answered(ctx, k, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			o.FieldSelector = selector
			w, err := client.Watch(ctx, o)
			if err == nil {
				k.established.Store(true)
			}
			if err == nil || o.SendInitialEvents == nil {
				c.answered(ctx, k, err) // else a list follows, which an older API server takes
			}
			return w, err
		},
	}
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

// marks are handlers that only mark that something changed: the caches are listed later, once for many changes.
func (k *kind) marks(m *Metrics, changed func()) cache.ResourceEventHandlerFuncs {
	events := m.events.WithLabelValues(k.name)
	mark := func() {
		events.Inc()
		changed()
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { mark() },
		DeleteFunc: func(any) { mark() },
		UpdateFunc: func(old, next any) {
			if !k.same(old, next) {
				mark()
			}
		},
	}
}

// settled says whether the kind was read once, or will not be.
func (k *kind) settled() bool { return k.informer.HasSynced() || k.refusal.denied() != 0 }

// addDenial adds the kind to the list if it is denied.
func (k *kind) addDenial(all []objects.Denial) []objects.Denial {
	code := k.refusal.denied()
	if code == 0 {
		return all
	}
	return append(all, objects.Denial{Kind: k.name, Namespace: k.secrets.Namespace, Name: k.secrets.Name, Code: code})
}

// addUnread adds the kind to the list if it is denied and was never read.
func (k *kind) addUnread(all []objects.Denial) []objects.Denial {
	if k.informer.HasSynced() {
		return all // what was read before stays in the cache
	}
	return k.addDenial(all)
}
