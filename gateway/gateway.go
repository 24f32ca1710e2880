// Package gateway is the L7 data plane: it accepts HTTP connections, finds each request's route and relays it to an
// endpoint of one of the route's backends.
//
// In front is a fasthttp.Server for each connection, behind a transport of our own: one pool of connections for each
// endpoint. A request loads the current state (route table, pickers, pools) once and keeps it to its end, so a
// Reconcile never disturbs a request in flight. Bodies are streamed both ways; one that was cut short on one side is
// always seen as cut short on the other. No request sets a deadline: one watcher looks at all connections at a
// coarse tick and ends what has made no progress for too long.
package gateway

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"sallyport/gateway/balance"
	"sallyport/gateway/route"
	"sallyport/watcher/model"
)

// Options configure a Gateway. Durations and sizes left at zero take the default that is named with them.
type Options struct {
	// Addresses are what to listen on, as "host:port" or ":port".
	Addresses []string
	// TrustedProxies are the peers whose X-Forwarded-* and Forwarded headers are believed and extended. From
	// everybody else they are replaced.
	TrustedProxies []netip.Prefix

	ConnectTimeout  time.Duration // to connect to an endpoint; 5 s
	HeaderTimeout   time.Duration // from the first byte of a request to the end of its header, and a first piece of its body; 10 s
	ResponseTimeout time.Duration // from the last byte of a request to the end of the response's header; 60 s
	IdleTimeout     time.Duration // of a client connection between two requests; 60 s
	ReadTimeout     time.Duration // without a byte of a request's body from the client; 60 s
	WriteTimeout    time.Duration // without the client taking a byte of a response; 60 s
	StreamTimeout   time.Duration // without a byte of a response's body from the endpoint; 5 min
	// BackendIdleTimeout is how long an idle connection to an endpoint is kept; 4 s. It is less than what servers
	// commonly allow (Node.js 5 s), so that it is seldom the endpoint that closes, as a request sets out.
	BackendIdleTimeout time.Duration
	DrainTime          time.Duration // for requests in flight when Serve's context ends; 10 s

	MaxHeaderBytes int // of a request's or response's header block, with its first line; 16 KiB

	Log     *slog.Logger          // required
	Metrics prometheus.Registerer // required
}

// withDefaults fills in what was left at zero.
func (o Options) withDefaults() Options {
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, 5*time.Second)
	o.HeaderTimeout = cmp.Or(o.HeaderTimeout, 10*time.Second)
	o.ResponseTimeout = cmp.Or(o.ResponseTimeout, time.Minute)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, time.Minute)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, time.Minute)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, time.Minute)
	o.StreamTimeout = cmp.Or(o.StreamTimeout, 5*time.Minute)
	o.BackendIdleTimeout = cmp.Or(o.BackendIdleTimeout, 4*time.Second)
	o.DrainTime = cmp.Or(o.DrainTime, 10*time.Second)
	o.MaxHeaderBytes = cmp.Or(o.MaxHeaderBytes, 16<<10)
	return o
}

// A Gateway serves the routes of the snapshot that it was last given. It is made by New.
type Gateway struct {
	opt      Options
	log      *slog.Logger
	metrics  metrics
	clock    clock
	limits   limits
	server   *fasthttp.Server
	registry balance.Registry
	state    atomic.Pointer[state]
	draining atomic.Bool

	reconciling sync.Mutex // one Reconcile at a time

	mu        sync.Mutex // guards what follows
	listeners []net.Listener
	conns     map[*conn]struct{}
	empty     chan struct{} // closed when conns becomes empty while draining
}

// state is what a request needs of a snapshot.
type state struct {
	table   *route.Table     // nil before the first Reconcile
	pickers []balance.Picker // by index of the route in the snapshot; nil where nothing can be sent to
	pools   map[*balance.Endpoint]*pool
}

// New returns a Gateway that answers 503 until the first Reconcile: what it serves is not known, so nothing is missing.
func New(o Options) *Gateway {
	o = o.withDefaults()
	g := &Gateway{
		opt:     o,
		log:     o.Log.With("part", "gateway"),
		metrics: newMetrics(o.Metrics),
		conns:   make(map[*conn]struct{}),
	}
	g.clock, g.limits = newClock(o)
	g.server = g.newServer()
	g.state.Store(new(state))
	return g
}

// Reconcile makes the gateway serve the routes of s. Requests in flight end as they began. It does not fail.
func (g *Gateway) Reconcile(_ context.Context, s *model.Snapshot) error {
	g.reconciling.Lock()
	defer g.reconciling.Unlock()
	next := &state{
		table:   route.Compile(s),
		pickers: make([]balance.Picker, len(s.Routes)),
		pools:   make(map[*balance.Endpoint]*pool),
	}
	b := builder{g: g, snapshot: s, pools: next.pools, ports: make(map[*model.ServicePort]balance.Picker)}
	for i := range s.Routes {
		next.pickers[i] = b.picker(s.Routes[i].Backends)
	}
	for e, p := range g.state.Swap(next).pools {
		if next.pools[e] == nil {
			p.close()
		}
	}
	g.metrics.routes.Set(float64(len(s.Routes)))
	return nil
}

// A builder makes the pickers of one snapshot. Routes to the same service port share one.
type builder struct {
	g        *Gateway
	snapshot *model.Snapshot
	pools    map[*balance.Endpoint]*pool
	ports    map[*model.ServicePort]balance.Picker
}

// picker returns a picker over the destinations of the backends, or nil if there are none.
func (b *builder) picker(backends []model.Backend) balance.Picker {
	var shares []balance.Share
	for _, backend := range backends {
		if p := b.port(backend); p != nil {
			shares = append(shares, balance.Share{Picker: p, Weight: backend.Weight})
		}
	}
	switch {
	case len(shares) == 0:
		return nil
	case len(backends) == 1:
		return shares[0].Picker
	}
	return balance.NewSplit(shares)
}

// port returns the picker over the destinations of the backend's service port, or nil if there are none.
func (b *builder) port(backend model.Backend) balance.Picker {
	service := b.snapshot.Service(backend.Service)
	if service == nil {
		return nil
	}
	port := service.Port(backend.Port, model.TCP)
	if port == nil || len(port.Destinations) == 0 {
		return nil
	}
	if p := b.ports[port]; p != nil {
		return p
	}
	endpoints := make([]*balance.Endpoint, len(port.Destinations))
	for i, d := range port.Destinations {
		endpoints[i] = b.endpoint(d.Addr)
	}
	p := balance.NewRoundRobin(endpoints)
	b.ports[port] = p
	return p
}

// endpoint returns the endpoint at addr and sees to it that it has a pool, which outlives the snapshot.
func (b *builder) endpoint(addr netip.AddrPort) *balance.Endpoint {
	e := b.g.registry.Endpoint(addr)
	if b.pools[e] == nil {
		p := b.g.state.Load().pools[e]
		if p == nil {
			p = newPool(b.g, addr)
		}
		b.pools[e] = p
	}
	return e
}
