package stream

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"sallyport/watcher/model"
)

// A denial is why a client was not served, as the label of a metric; empty if it is.
type denial string

// What denies a client.
const (
	denySource    denial = "source_ranges"
	denyRate      denial = "new_connections"
	denyPerClient denial = "connections_per_client"
	denyTotal     denial = "connections"
	denyFull      denial = "table_full" // the client cannot be remembered, and so not be limited; or its connection would be one too many for its Service's share
)

// limitedBits is how much of an IPv6 address tells one client from another (model.Limits).
const limitedBits = 64

// A limiter keeps the connections of one Service, over all its ports, within its limits. UDP sessions are connections, too.
//
// Clients are remembered while they have a connection, or had one within the last second. Where a Service has its share of
// MaxClients, further ones are denied, as the kernel's hashlimit does: a limit that a flood of clients could turn off would be
// none.
type limiter struct {
	uptime     func() time.Duration
	remembered *budget

	mu      sync.Mutex
	limits  model.Limits
	total   uint32
	clients map[netip.Addr]*usage
	swept   time.Duration
}

// A usage is what one client has of a Service's limits.
type usage struct {
	connections uint32
	// full is the uptime at which the client may open as many connections at once again as in a second. Each one puts it off
	// by its share of a second (the generic cell rate algorithm, ITU-T I.371), so that no timer refills anything.
	full time.Duration
}

// An admission is a connection that a limiter let in. It is released once.
type admission struct {
	limiter *limiter
	client  netip.Addr
	usage   *usage // nil if the client's was not counted
}

// set changes the limits; nil is none. Connections from before a limit per client was set do not count for it.
func (l *limiter) set(limits *model.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limits = model.Limits{}
	if limits != nil {
		l.limits = *limits
	}
}

// admit counts a new connection, unless it exceeds a limit. The one that is denied costs its client nothing.
func (l *limiter) admit(client netip.Addr) (admission, denial) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if exceeded(l.limits.Total, l.total) {
		return admission{}, denyTotal
	}
	if l.limits.PerClient == 0 && l.limits.NewPerSecond == 0 {
		l.total++
		return admission{limiter: l}, ""
	}
	client, now := limited(client), l.uptime()
	u := l.usage(client, now)
	switch {
	case u == nil:
		return admission{}, denyFull
	case exceeded(l.limits.PerClient, u.connections):
		return admission{}, denyPerClient
	case !u.open(l.limits.NewPerSecond, now):
		return admission{}, denyRate
	}
	l.total++
	u.connections++
	return admission{l, client, u}, ""
}

// limited returns the address that stands for the client in limits.
func limited(client netip.Addr) netip.Addr {
	if client.Is4() {
		return client
	}
	network, _ := client.Prefix(limitedBits) // fails for IPv4 only
	return network.Addr()
}

// exceeded says whether n leaves no room for one more; 0 is no limit.
func exceeded(limit, n uint32) bool { return limit != 0 && n >= limit }

// usage returns what is known of a client, from now on if it is new; nil if there is no room for it. l.mu is held.
func (l *limiter) usage(client netip.Addr, now time.Duration) *usage {
	if u := l.clients[client]; u != nil {
		return u
	}
	if !l.remembered.take(len(l.clients)) {
		if now < l.swept+time.Second {
			return nil
		}
		l.forget(now)
		if !l.remembered.take(len(l.clients)) {
			return nil
		}
	}
	if l.clients == nil {
		l.clients = make(map[netip.Addr]*usage)
	}
	u := &usage{}
	l.clients[client] = u
	return u
}

// open takes one new connection of those that a client may open in a second, and reports whether there was one.
func (u *usage) open(perSecond uint32, now time.Duration) bool {
	if perSecond == 0 {
		return true
	}
	full := max(u.full, now) + time.Second/time.Duration(perSecond)
	if full > now+time.Second {
		return false
	}
	u.full = full
	return true
}

// idle says whether a client is as if it had never been here.
func (u *usage) idle(now time.Duration) bool { return u.connections == 0 && u.full <= now }

// release takes the connection back.
func (a admission) release() {
	l := a.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if a.usage == nil {
		return
	}
	a.usage.connections--
	if a.usage.idle(l.uptime()) {
		delete(l.clients, a.client)
		l.remembered.give(1)
	}
}

// sweep forgets idle clients.
func (l *limiter) sweep(now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
}

// forget is sweep while l.mu is held.
func (l *limiter) forget(now time.Duration) {
	l.swept = now
	before := len(l.clients)
	maps.DeleteFunc(l.clients, func(_ netip.Addr, u *usage) bool { return u.idle(now) })
	l.remembered.give(before - len(l.clients))
}

// idle says whether the limiter has nothing to remember.
func (l *limiter) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total == 0 && len(l.clients) == 0
}
