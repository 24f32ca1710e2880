package watcher

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"sallyport/watcher/objects"
)

// A connection is an API server by one kubeconfig, with its own informers. A kubeconfig that changes makes another one.
type connection struct {
	o         Options
	config    *rest.Config
	transport http.RoundTripper
	client    kubernetes.Interface
	identity  *identity // shared by an API's connections
	gate      *gate
	health    health
	kinds     []*kind
	secrets   secrets
	// patience is how long a kind must be refused before it is denied: denialPatience, but for tests.
	patience time.Duration
	// complete is set when there were Objects for the first time.
	complete atomic.Bool

	// mixed is set when another cluster's objects came through: the gate looks at connections as they begin, not at what
	// becomes of them. What the caches hold is of no use any longer.
	mixed atomic.Bool
	// active is set while this is the connection whose objects are served.
	active atomic.Bool

	mu      sync.Mutex
	running *run // nil before and after run
}

// A run is what a connection has while it runs.
type run struct {
	ctx     context.Context
	changed func()
	group   sync.WaitGroup
}

// newConnection returns the connection of config. No request is sent before run.
func newConnection(config *rest.Config, o Options, id *identity) (*connection, error) {
	config = rest.CopyConfig(config)
	config.UserAgent = "sallyport/" + o.Version
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c := &connection{config: config}
	base, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	c.transport = observed{base, c} // the outermost, because an exec plugin can fail too
	client, err := kubernetes.NewForConfigAndClient(config, &http.Client{Transport: c.transport, Timeout: config.Timeout})
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	c.prepare(client, o, id)
	return c, nil
}

// prepare makes the informers.
func (c *connection) prepare(client kubernetes.Interface, o Options, id *identity) {
	c.o, c.client, c.identity, c.gate, c.patience = o, client, id, newGate(), denialPatience
	c.health.log = &limitedLog{log: o.Log.With("server", c.server())}
	c.secrets = secrets{connection: c, watches: map[objects.Name]*secretWatch{}}
	core, network, shared := client.CoreV1(), client.NetworkingV1(), newSharedValues()
	watch(c, "Namespace", &corev1.Namespace{}, core.Namespaces(), slimNamespace, nil,
		func(c *objects.Cluster) *[]*corev1.Namespace { return &c.Namespaces })
	watch(c, "Node", &corev1.Node{}, core.Nodes(), slimNode, sameNode,
		func(c *objects.Cluster) *[]*corev1.Node { return &c.Nodes })
	watch(c, "Service", &corev1.Service{}, core.Services(""), shared.slimService, nil,
		func(c *objects.Cluster) *[]*corev1.Service { return &c.Services })
	watch(c, "EndpointSlice", &discoveryv1.EndpointSlice{}, client.DiscoveryV1().EndpointSlices(""), shared.slimEndpointSlice, nil,
		func(c *objects.Cluster) *[]*discoveryv1.EndpointSlice { return &c.EndpointSlices })
	watch(c, "IngressClass", &networkingv1.IngressClass{}, network.IngressClasses(), nil, nil,
		func(c *objects.Cluster) *[]*networkingv1.IngressClass { return &c.IngressClasses })
	watch(c, "Ingress", &networkingv1.Ingress{}, network.Ingresses(""), nil, nil,
		func(c *objects.Cluster) *[]*networkingv1.Ingress { return &c.Ingresses })
}

// server is the API server's URL.
func (c *connection) server() string {
	if c.config == nil {
		return "" // a test's
	}
	return c.config.Host
}

// run watches until ctx ends. It can be called once.
func (c *connection) run(ctx context.Context, changed func()) {
	r := &run{ctx: ctx, changed: changed}
	c.mu.Lock()
	c.running = r
	c.mu.Unlock()
	r.group.Go(func() { c.keepGate(ctx) })
	for _, k := range c.kinds {
		c.launch(k)
	}
	<-ctx.Done()
	c.mu.Lock()
	c.running = nil
	c.mu.Unlock()
	r.wait(c.o.Log)
}

// launch starts a kind's informer, which ends by stop, or with run. Outside of run nothing is started.
func (c *connection) launch(k *kind) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.running
	if r == nil {
		return func() {}
	}
	if _, err := k.informer.AddEventHandler(k.marks(c.o.Metrics, r.changed)); err != nil {
		panic("BUG: an informer that was never started takes no handler: " + err.Error())
	}
	ctx, cancel := context.WithCancel(r.ctx)
	r.group.Go(func() { k.informer.RunWithContext(ctx) })
	r.group.Go(func() {
		select {
		case <-ctx.Done():
		case <-k.informer.HasSyncedChecker().Done():
			r.changed() // the last event may have come before the cache called itself synced
		}
	})
	return cancel
}

// notify says that there may be other Objects.
func (c *connection) notify() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != nil {
		c.running.changed()
	}
}

// shutdownTimeout bounds the wait for informers. They end with their context, but one that backs off from an API server
// which refuses (Reflector.watchList) looks at it only afterwards, up to half a minute later.
const shutdownTimeout = time.Second

// wait returns when all has ended.
func (r *run) wait(log *slog.Logger) {
	done := make(chan struct{})
	go func() {
		r.group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(shutdownTimeout):
		log.Debug("leaving informers that back off")
	}
}

// Objects lists the caches. ok is false until each kind and each Secret that is wanted was read once or is denied, and
// while a Secret that is wanted now may still come. It is false, too, if another cluster's objects came through.
func (c *connection) Objects() (_ objects.Cluster, ok bool) {
	all := objects.Cluster{Name: c.o.Cluster}
	for _, k := range c.kinds {
		if !k.settled() {
			return objects.Cluster{}, false
		}
		k.list(&all)
		all.Denied = k.addDenial(all.Denied)
	}
	if !c.secrets.list(&all) {
		return objects.Cluster{}, false
	}
	c.complete.Store(true)
	if !c.identity.matches(c.uid("Namespace", "", metav1.NamespaceSystem)) {
		c.mixed.Store(true)
	}
	return all, !c.mixed.Load()
}

// unread lists what is denied and was never read.
func (c *connection) unread() []objects.Denial {
	var all []objects.Denial
	for _, k := range c.kinds {
		all = k.addUnread(all)
	}
	return c.secrets.addUnread(all)
}

// uid returns the UID of a cached object, or "".
func (c *connection) uid(kind, namespace, name string) string {
	for _, k := range c.kinds {
		if k.name != kind {
			continue
		}
		o, exists, err := k.informer.GetStore().GetByKey(cache.NewObjectName(namespace, name).String())
		if err == nil && exists {
			return string(o.(metav1.Object).GetUID())
		}
	}
	return ""
}
