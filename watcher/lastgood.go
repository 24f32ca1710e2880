package watcher

import (
	"context"

	"sallyport/watcher/objects"
)

// LastGood is a Source.
type LastGood struct {
	source Source
	file   string
	o      Options
}

// NewLastGood returns a Source.
func NewLastGood(s Source, file string, o Options) *LastGood {
	return &LastGood{source: s, file: file, o: o}
}

// Run runs the source.
func (l *LastGood) Run(ctx context.Context, changed func()) error { return l.source.Run(ctx, changed) }

// Objects are the source's.
func (l *LastGood) Objects() (objects.Cluster, bool) { return l.source.Objects() }
