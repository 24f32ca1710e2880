package stream

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"sallyport/gateway/balance"
)

// affinities remember which endpoint of a service port each client was last sent to (model.Affinity.Exact). Where a port has its
// share of MaxClients, a further client's address alone decides, as it does without Exact.
type affinities struct {
	uptime     func() time.Duration
	remembered *budget

	mu      sync.Mutex
	clients map[netip.Addr]affinity
}

type affinity struct {
	endpoint *balance.Endpoint
	until    time.Duration // uptime
}

// endpoint returns where the client was last sent to, or nil.
func (a *affinities) endpoint(client netip.Addr) *balance.Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last := a.clients[client]; a.uptime() < last.until {
		return last.endpoint
	}
	return nil
}

// remember keeps the client at e for the timeout.
func (a *affinities) remember(client netip.Addr, e *balance.Endpoint, timeout time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.clients[client]; !known && !a.remembered.take(len(a.clients)) {
		return
	}
	if a.clients == nil {
		a.clients = make(map[netip.Addr]affinity)
	}
	a.clients[client] = affinity{e, a.uptime() + timeout}
}

// sweep forgets the clients whose time is up.
func (a *affinities) sweep(now time.Duration) {
	a.forget(func(f affinity) bool { return f.until <= now })
}

// clear forgets all clients.
func (a *affinities) clear() { a.forget(func(affinity) bool { return true }) }

func (a *affinities) forget(gone func(affinity) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := len(a.clients)
	maps.DeleteFunc(a.clients, func(_ netip.Addr, f affinity) bool { return gone(f) })
	a.remembered.give(before - len(a.clients))
}
