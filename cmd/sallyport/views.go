package main

import (
	"sallyport/cmd/sallyport/admin"
	"sallyport/watcher/model"
)

// The edge is its own admin.Views.

// Status implements admin.Views.
func (e *edge) Status() admin.Status {
	s := admin.Status{
		Edge: e.config.Edge.Name, Version: version(), Started: e.started,
		Dataplane: e.config.L4.Dataplane, Reach: string(e.config.Reach),
		Problems: append([]model.Problem{}, e.pipeline.problems.current()...), // a list in JSON, also without any
	}
	if err := e.ready(); err != nil {
		s.Waiting = err.Error()
	}
	for _, i := range e.pipeline.inputs {
		s.Clusters = append(s.Clusters, i.health())
	}
	if published := e.Snapshot(); published != nil {
		s.Snapshot.Count(published)
		s.Snapshot.Published = *e.pipeline.published.Load()
	}
	for _, l := range e.pipeline.lanes {
		s.Lanes = append(s.Lanes, l.status())
	}
	if e.writer != nil {
		s.Writer = &admin.Writer{Leader: e.writer.Leader(), Self: e.writer.Leads()}
	}
	return s
}

func (l *lane) status() admin.Lane {
	out := admin.Lane{Name: l.name, Generation: l.applied.Load()}
	if failure := l.failure.Load(); failure != nil {
		out.Error = *failure
	}
	return out
}

// Snapshot implements admin.Views.
func (e *edge) Snapshot() *model.Snapshot { return e.pipeline.store.Current() }
