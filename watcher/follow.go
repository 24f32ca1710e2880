package watcher

import (
	"context"
	"crypto/sha256"
	"os"
	"slices"

	"k8s.io/client-go/rest"

	"sallyport/watcher/objects"
)

// A follower runs an API's connections: the current one, and the one that a changed kubeconfig makes.
type follower struct {
	api     *API
	changed func()
	ready   chan struct{} // the next connection may have read everything
	files   fingerprint   // of the kubeconfig that the newest connection was made of
	seen    fingerprint   // of the kubeconfig when it was last looked at

	connections map[*connection]*runningConnection
}

// A runningConnection is a connection that runs.
type runningConnection struct {
	stop context.CancelFunc
	done chan struct{}
}

// A fingerprint identifies the content of a kubeconfig's files.
type fingerprint [sha256.Size]byte

func newFollower(a *API, changed func()) *follower {
	f := &follower{api: a, changed: changed, ready: make(chan struct{}, 1), connections: map[*connection]*runningConnection{}}
	f.files = a.o.Kubeconfig.fingerprint()
	f.seen = f.files
	return f
}

// begin runs a connection until it is stopped.
func (f *follower) begin(ctx context.Context, c *connection) {
	ctx, cancel := context.WithCancel(ctx)
	r := &runningConnection{cancel, make(chan struct{})}
	f.connections[c] = r
	go func() {
		defer close(r.done)
		c.run(ctx, func() { f.mark(c) })
	}()
}

// mark takes note of a change that a connection saw.
func (f *follower) mark(c *connection) {
	if f.api.current.Load() == c {
		f.changed()
		return
	}
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// drop stops a connection, and waits until it has ended.
func (f *follower) drop(c *connection) {
	r := f.connections[c]
	delete(f.connections, c)
	r.stop()
	<-r.done
}

// end stops all connections.
func (f *follower) end() {
	for c := range f.connections {
		f.drop(c)
	}
}

// look makes a connection of a kubeconfig that has changed, and one for a connection whose caches are of no use.
func (f *follower) look(ctx context.Context) {
	if f.kubeconfigChanged() {
		next, origin, err := f.api.reconnect()
		if err != nil {
			f.api.o.Log.Error("kubeconfig has changed and cannot be used, the connection stays", "err", err)
			return
		}
		f.api.o.Log.Info("kubeconfig has changed, connecting anew", "from", origin, "server", next.server())
		f.follow(ctx, next)
		return
	}
	newest := f.api.next.Load()
	if newest == nil {
		newest = f.api.current.Load()
	}
	if !newest.mixed.Load() {
		return
	}
	f.api.o.Log.Error("objects of another cluster came through, connecting anew", "server", newest.server())
	if next, err := f.api.connection(newest.config); err == nil { // the config was good before
		f.follow(ctx, next)
	}
}

// kubeconfigChanged says whether there is another kubeconfig than the newest connection's. The files must have been the
// same twice, because one may be half written.
func (f *follower) kubeconfigChanged() bool {
	now := f.api.o.Kubeconfig.fingerprint()
	stable := now == f.seen
	f.seen = now
	if !stable || now == f.files {
		return false
	}
	f.files = now
	return true
}

// follow begins the connection that is to take over, in place of one that has not done so yet.
func (f *follower) follow(ctx context.Context, next *connection) {
	if old := f.api.next.Swap(next); old != nil {
		f.drop(old)
	}
	f.begin(ctx, next)
}

// takeOver puts the next connection in place of the current one, if it has read everything.
func (f *follower) takeOver() {
	next := f.api.next.Load()
	if next == nil {
		return
	}
	old := f.api.current.Load()
	if _, ok := next.Objects(); !ok || !next.readsAllOf(old) {
		f.changed() // a conflict that it found is to be shown
		return
	}
	f.api.use(next)
	f.api.next.Store(nil)
	f.api.o.Log.Info("connected anew", "server", next.server())
	f.drop(old)
	f.changed()
}

// readsAllOf says whether the connection has read all kinds and Secrets that the old one has: with credentials that permit
// less, what they do not permit would be gone.
func (c *connection) readsAllOf(old *connection) bool {
	if !old.complete.Load() {
		return true
	}
	before := old.unread()
	return !slices.ContainsFunc(c.unread(), func(d objects.Denial) bool { return !slices.Contains(before, d) })
}

// reconnect makes a connection of the kubeconfig as it is now.
func (a *API) reconnect() (c *connection, origin string, err error) {
	config, origin, err := Kubeconfig(a.o.Kubeconfig.Path, a.o.Kubeconfig.Context)
	if err != nil {
		return nil, "", err
	}
	c, err = a.connection(config)
	return c, origin, err
}

// connection returns another connection, to the API server that config leads to.
func (a *API) connection(config *rest.Config) (*connection, error) {
	c, err := newConnection(config, a.o, a.identity)
	if err != nil {
		return nil, err
	}
	c.patience = a.current.Load().patience
	return c, nil
}

// fingerprint reads the kubeconfig's files. A file that cannot be read counts as another content. The files that a
// kubeconfig names are left out: client-go reads those again by itself.
func (l *KubeconfigLocation) fingerprint() (f fingerprint) {
	if l == nil {
		return f
	}
	files, err := kubeconfigFiles(l.Path)
	h := sha256.New()
	if err != nil {
		h.Write([]byte(err.Error()))
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			data = []byte(err.Error())
		}
		sum := sha256.Sum256(data)
		h.Write([]byte(file))
		h.Write(sum[:])
	}
	return fingerprint(h.Sum(nil))
}
