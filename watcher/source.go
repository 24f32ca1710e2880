// Package watcher fills Objects, the inputs of translation, and says when they change.
//
// A Source is an API server (API: informers), an API server whose objects are kept in a file against outages (LastGood),
// or a folder of manifests (Manifests); all are alike to what follows. A Source only says that something changed, never
// what: whoever listens coalesces (Trigger) and then lists all Objects anew.
package watcher

import (
	"context"

	"sallyport/watcher/objects"
)

// A Source is where objects come from.
type Source interface {
	// Run keeps the objects up to date until ctx ends, then returns nil. It calls changed, from any goroutine, after
	// each change; changed must not block. An error means that the source cannot work at all.
	Run(ctx context.Context, changed func()) error
	// Objects returns what the source holds now. The objects must not be modified. ok is false until everything that
	// the source may read has been read once: what a part of the objects says must not be acted on.
	Objects() (_ objects.Cluster, ok bool)
}
