// Package balance chooses the endpoint that the next connection or request goes to.
//
// What changes while traffic flows lives in Endpoints. They belong to a Registry and are keyed by address, outside
// the immutable snapshot, so that a new route table finds the state that the old one left. Pickers are built anew for
// every snapshot and are safe for concurrent use; a pick does not allocate.
package balance

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"weak"
)

// An Endpoint is the mutable state of one destination address.
type Endpoint struct {
	addr     netip.AddrPort
	inFlight atomic.Int64
}

// Addr returns the destination address.
func (e *Endpoint) Addr() netip.AddrPort { return e.addr }

// Begin counts one more request or connection at the endpoint. It is paired with End.
func (e *Endpoint) Begin() { e.inFlight.Add(1) }

// End takes back one Begin.
func (e *Endpoint) End() { e.inFlight.Add(-1) }

// InFlight returns the number of requests or connections now at the endpoint.
func (e *Endpoint) InFlight() int64 { return e.inFlight.Load() }

// A Registry gives every destination address its one Endpoint. It holds them weakly: an Endpoint lives for as long
// as a picker or a request refers to it, and its entry goes when it does. The zero value is ready for use.
type Registry struct {
	mu        sync.Mutex
	endpoints map[netip.AddrPort]weak.Pointer[Endpoint]
}

// Endpoint returns the Endpoint of addr, which is made if no one holds it yet.
func (r *Registry) Endpoint(addr netip.AddrPort) *Endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.endpoints[addr].Value(); e != nil {
		return e
	}
	e := &Endpoint{addr: addr}
	if r.endpoints == nil {
		r.endpoints = make(map[netip.AddrPort]weak.Pointer[Endpoint])
	}
	r.endpoints[addr] = weak.Make(e)
	runtime.AddCleanup(e, r.forget, addr)
	return e
}

// forget drops the entry of an Endpoint that was collected, unless the address has a new one by now.
func (r *Registry) forget(addr netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.endpoints[addr].Value() == nil {
		delete(r.endpoints, addr)
	}
}

// Len returns the number of endpoints that are known, for metrics and tests.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.endpoints)
}
