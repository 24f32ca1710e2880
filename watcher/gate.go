package watcher

import (
	"context"
	"sync"
)

// A gate holds back the requests of a connection while the API server is not there, or is not the right one. A probe asks
// in their place: the informers, which would back off for up to a minute, go on as soon as there is an answer, and none of
// them reads anything of another cluster.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while requests may pass
	shut chan struct{} // of capacity 1: the probe has to open the gate
}

func newGate() *gate {
	g := &gate{open: make(chan struct{}), shut: make(chan struct{}, 1)}
	g.shut <- struct{}{}
	return g
}

// wait returns when requests may pass, or when ctx ends.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isOpen says whether requests may pass.
func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.passing()
}

func (g *gate) passing() bool {
	select {
	case <-g.open:
		return true
	default:
		return false
	}
}

// close holds back requests from now on.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.passing() {
		g.open = make(chan struct{})
		select {
		case g.shut <- struct{}{}:
		default:
		}
	}
}

func (g *gate) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.passing() {
		close(g.open)
	}
}
