package watcher

import (
	"context"
	"sync"
	"time"

	"sallyport/watcher/objects"
)

// LastGood is the Source that keeps an API's objects in a file, and serves from it while the API server cannot be reached
// after a start. The file is of ordinary manifests, with the Secrets in clear.
//
// The file also says which cluster is ours, by the UID of the namespace kube-system: another cluster's objects are never
// taken.
type LastGood struct {
	api     *API
	file    lastGoodFile
	o       Options
	changes chan struct{} // of capacity 1: something changed since the file was written

	mu sync.Mutex
	// late is set when the API server's objects are not waited for any longer.
	late bool
	// taken is set when the API server's objects were there once. They stay in its caches: the file is not needed
	// afterwards.
	taken bool
	// stored are the file's objects, nil if there are none; they are read when they are needed, once. When taken they are
	// those that the API server does not permit to read.
	stored *objects.Cluster
	read   bool
	stale  bool // as the last Objects were
}

// NewLastGood returns the source of the API's objects, kept in file. Its folder is made if it is missing.
func NewLastGood(api *API, file string, o Options) *LastGood {
	l := &LastGood{api: api, file: lastGoodFile(file), o: o, changes: make(chan struct{}, 1)}
	l.show()
	return l
}

const (
	// startPatience is how long the API server's objects are waited for at start, unless a request fails before.
	startPatience = 3 * time.Second
	// writeInterval is how often the file is written at most.
	writeInterval = 30 * time.Second
)

// Run watches, and writes what it sees, until ctx ends. It can be called once.
func (l *LastGood) Run(ctx context.Context, changed func()) error {
	uid, err := l.file.clusterUID()
	if err != nil {
		l.o.Log.Error("last-good file cannot be read", "err", err)
	}
	l.api.identity.expect(uid)
	late := time.AfterFunc(startPatience, func() {
		l.mu.Lock()
		l.late = true
		l.mu.Unlock()
		changed()
	})
	defer late.Stop()
	var writer sync.WaitGroup
	writer.Go(func() { l.keep(ctx) })
	err = l.api.Run(ctx, func() {
		l.mark()
		changed()
	})
	writer.Wait()
	select {
	case <-l.changes:
		l.write()
	default:
	}
	return err
}

func (l *LastGood) mark() {
	select {
	case l.changes <- struct{}{}:
	default:
	}
}

// keep writes the file when everything was read, and again after changes, until ctx ends.
func (l *LastGood) keep(ctx context.Context) {
	var pause <-chan time.Time // nil: none
	for {
		changes := l.changes
		if pause != nil {
			changes = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-pause:
			pause = nil
		case <-changes:
			if l.write() {
				pause = time.After(writeInterval)
			}
		}
	}
}

// write writes the file, unless the API server's objects are not complete. It says whether it tried.
func (l *LastGood) write() bool {
	c, ok := l.fresh()
	if !ok {
		return false
	}
	if err := l.file.write(c); err != nil {
		l.o.Log.Error("last-good file cannot be written: after a restart without the API server nothing newer is served", "err", err)
		l.mark()
	}
	l.show()
	return true
}

// show sets the metrics.
func (l *LastGood) show() {
	if at := l.file.written(); !at.IsZero() {
		l.o.Metrics.lastGoodWritten.WithLabelValues(l.o.label()).Set(seconds(at))
	}
	l.o.Metrics.lastGoodServing.WithLabelValues(l.o.label()).Set(truth(l.isStale()))
}

func (l *LastGood) isStale() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stale
}

// Objects returns the API server's objects, or the file's as long as there were none and the API server fails.
func (l *LastGood) Objects() (_ objects.Cluster, ok bool) {
	c, ok := l.pick()
	if c.Conflict != "" {
		c.Conflict += ": correct the kubeconfig, or, if the cluster was made anew, remove " + string(l.file) + " and restart"
	}
	if ok {
		l.mu.Lock()
		changed := l.stale != c.Stale
		l.stale = c.Stale
		l.mu.Unlock()
		if changed {
			l.turned(c)
		}
	}
	return c, ok
}

// turned tells that what is served became stale, or is fresh again.
func (l *LastGood) turned(c objects.Cluster) {
	l.show()
	if c.Stale {
		l.o.Log.Warn("serving what was last known of the cluster", "file", string(l.file), "services", len(c.Services), "conflict", c.Conflict)
		return
	}
	l.o.Log.Info("serving what the API server says", "services", len(c.Services))
}

// pick returns the API server's objects, or the file's.
func (l *LastGood) pick() (_ objects.Cluster, ok bool) {
	if c, ok := l.fresh(); ok {
		return c, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taken || !l.late && l.api.Health().LastError == "" {
		return objects.Cluster{}, false
	}
	stored := l.load()
	if stored == nil {
		return objects.Cluster{}, false
	}
	c := *stored
	c.Conflict, _ = l.api.conflict()
	return c, true
}

// fresh returns the API server's objects. What it does not permit to read is added from the file: a role that was taken
// away must not lose more after a restart than before.
func (l *LastGood) fresh() (_ objects.Cluster, ok bool) {
	c, ok := l.api.Objects()
	if !ok {
		return objects.Cluster{}, false
	}
	unread := l.api.current.Load().unread()
	for _, d := range unread {
		if d.Kind == "Ingress" {
			unread = append(unread, objects.Denial{Kind: "Secret"}) // those that only the Ingresses name were not asked for
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.taken {
		l.taken, l.stored = true, l.only(unread)
	}
	if l.stored != nil {
		for _, d := range unread {
			c.Stale = c.Take(d, *l.stored) || c.Stale
		}
	}
	return c, true
}

// only returns those of the file's objects that are denied, or nil.
func (l *LastGood) only(denied []objects.Denial) *objects.Cluster {
	if len(denied) == 0 {
		return nil
	}
	all := l.load()
	if all == nil {
		return nil
	}
	var some objects.Cluster
	for _, d := range denied {
		some.Take(d, *all)
	}
	return &some
}

// load returns the file's objects as they were when they were first asked for, or nil.
func (l *LastGood) load() *objects.Cluster {
	if !l.read {
		l.stored, l.read = l.file.read(l.o), true
	}
	return l.stored
}

// Health returns how the API server does, and the file.
func (l *LastGood) Health() Health {
	h := l.api.Health()
	h.File, h.Written, h.Stale = string(l.file), l.file.written(), l.isStale()
	return h
}

// UID returns the UID of an object that is cached from the API server, or "". Secrets are not looked for.
func (l *LastGood) UID(kind, namespace, name string) string { return l.api.UID(kind, namespace, name) }
