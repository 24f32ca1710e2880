package watcher

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"sallyport/watcher/objects"
)

// Manifests is the Source that reads a folder of manifests, or one file, and reads it again when it changes.
type Manifests struct {
	path string
	o    Options

	mu      sync.Mutex
	files   map[string]file
	cluster objects.Cluster
	read    bool
	health  Health
}

// A file is what is known of one file of manifests.
type file struct {
	sum   [sha256.Size]byte // of its content when it was last read
	good  objects.Manifest  // the last without errors, or the latest if it never was
	wrong []error           // in the latest
}

// NewManifests returns the source of the folder or file at path. Nothing is read before Run.
func NewManifests(path string, o Options) *Manifests {
	path = filepath.Clean(path)
	return &Manifests{path: path, o: o, files: map[string]file{}, health: Health{Cluster: o.Cluster, Server: path}}
}

// settle is how long a folder must be quiet before it is read again, so that a file is not read half written; maxSettle
// bounds the wait in a folder that is never quiet.
const (
	settle    = 50 * time.Millisecond
	maxSettle = time.Second
)

// Run reads the manifests, and again after each change, until ctx ends. It fails if the path cannot be read at first.
// Later on what cannot be read is logged, and the last good objects stay.
func (m *Manifests) Run(ctx context.Context, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests %s: %w", m.path, err)
	}
	defer func() { _ = w.Close() }()
	m.watch(w) // before reading: what changes meanwhile is read again
	if err := m.reload(); err != nil {
		return err
	}
	changed()
	m.follow(ctx, w, changed)
	return nil
}

// watch asks for events of the folder, and of the one that it stands in: a folder or file that is replaced as a whole
// is a new one. It is repeated after each change, because a watch follows the old one.
func (m *Manifests) watch(w *fsnotify.Watcher) {
	for _, path := range []string{filepath.Dir(m.path), m.path} {
		if err := w.Add(path); err != nil && !os.IsNotExist(err) {
			m.o.Log.Warn("cannot watch manifests: changes may not be seen", "path", path, "err", err)
		}
	}
}

// concerns says whether an event is about the manifests, and not about a neighbour in the folder above.
func (m *Manifests) concerns(e fsnotify.Event) bool {
	return e.Name == m.path || filepath.Dir(e.Name) == m.path
}

// follow reads again after changes.
func (m *Manifests) follow(ctx context.Context, w *fsnotify.Watcher, changed func()) {
	quiet := time.NewTimer(settle)
	quiet.Stop()
	var deadline time.Time // of the wait for quiet, zero if nothing is due
	wait := func() {
		if deadline.IsZero() {
			deadline = time.Now().Add(maxSettle)
		}
		quiet.Reset(min(settle, time.Until(deadline)))
	}
	for {
		select {
		case <-ctx.Done():
			quiet.Stop()
			return
		case e := <-w.Events:
			if m.concerns(e) {
				wait()
			}
		case err := <-w.Errors: // events were lost
			m.o.Log.Warn("watching manifests failed, reading them again", "path", m.path, "err", err)
			wait()
		case <-quiet.C:
			deadline = time.Time{}
			_ = w.Remove(m.path) // it may be of a folder that was replaced
			m.watch(w)
			if err := m.reload(); err != nil {
				m.o.Log.Error("manifests cannot be read, the last good objects stay", "path", m.path, "err", err)
				continue
			}
			changed()
		}
	}
}

// reload reads all files. A file with errors keeps its last good objects; the first time, those of its objects that are
// good are taken.
func (m *Manifests) reload() error {
	m.o.Metrics.events.WithLabelValues("Manifests").Inc()
	names, err := objects.Files(m.path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.health.Up = err == nil; err != nil {
		m.health.LastError = err.Error()
		return err
	}
	files := make(map[string]file, len(names))
	var all objects.Manifest
	var wrong []error
	for _, name := range names {
		files[name] = m.readFile(name)
		all.Merge(files[name].good)
		wrong = append(wrong, files[name].wrong...)
	}
	m.health.LastContact, m.health.LastError = time.Now(), summary(wrong)
	for _, e := range all.Errors {
		m.o.Log.Error("manifest not used", "at", e.String(), "err", e.Err)
	}
	m.files, m.cluster, m.read = files, all.Objects, true
	m.cluster.Name = m.o.Cluster
	return nil
}

// readFile reads one file, or returns what it held when it was last without errors. Only what has changed is parsed.
func (m *Manifests) readFile(name string) file {
	last, known := m.files[name]
	data, err := os.ReadFile(name)
	if err != nil {
		m.o.Log.Error("manifest cannot be read, its last good objects stay", "err", err)
		return file{good: last.good, wrong: []error{err}}
	}
	sum := sha256.Sum256(data)
	if known && sum == last.sum {
		return last
	}
	next := objects.Parse(name, data)
	var wrong []error
	for _, e := range next.Errors {
		wrong = append(wrong, e)
	}
	for _, w := range next.Warnings {
		m.o.Log.Warn("manifest has an unknown field", "at", w.String(), "err", w.Err)
	}
	if known && len(last.good.Errors) == 0 && len(next.Errors) > 0 {
		for _, e := range next.Errors {
			m.o.Log.Error("manifest broken, its last good objects stay", "at", e.String(), "err", e.Err)
		}
		return file{sum, last.good, wrong}
	}
	return file{sum, next, wrong}
}

// Objects returns what was read last. ok is false before the first time.
func (m *Manifests) Objects() (_ objects.Cluster, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cluster, m.read
}

// Health says whether the manifests can be read, and in LastError what of them cannot be used.
func (m *Manifests) Health() Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.health
}

// summary is the first of the errors and the number of the others.
func summary(errs []error) string {
	switch len(errs) {
	case 0:
		return ""
	case 1:
		return errs[0].Error()
	default:
		return fmt.Sprintf("%v, and %d more", errs[0], len(errs)-1)
	}
}
