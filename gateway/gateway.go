// Package gateway is the L7 data plane: it accepts HTTP and HTTPS connections, finds each request's route and relays it
// to an endpoint of one of the route's backends.
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
	"crypto/tls"
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
	// Addresses are what to listen on for HTTP in clear, as "host:port" or ":port".
	Addresses []string
	// TLSAddresses are what to listen on for HTTPS.
	TLSAddresses []string
	// TLSMinVersion is the oldest version of TLS that is spoken, such as tls.VersionTLS13; TLS 1.2.
	TLSMinVersion uint16
	// RedirectPort is the port that redirects to HTTPS name, if it is another than 443.
	RedirectPort uint16
	// Listen opens a listener, as net.ListenConfig.Listen does; that is the default. One that is given is taken to return
	// sockets that a successor listens on too: see Serve.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
	// Hold is how long Serve waits for the first Reconcile before it accepts connections: until then clients of an edge
	// that was restarted wait, rather than to be told that nothing is known yet; 0: not at all.
	Hold time.Duration
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
	// UpgradeIdleTimeout is how long an upgraded connection, such as a WebSocket, may carry no data in either direction; 1 h.
	UpgradeIdleTimeout time.Duration
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
	o.UpgradeIdleTimeout = cmp.Or(o.UpgradeIdleTimeout, time.Hour)
	o.DrainTime = cmp.Or(o.DrainTime, 10*time.Second)
	o.TLSMinVersion = cmp.Or(o.TLSMinVersion, tls.VersionTLS12)
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
	fallback *tls.Certificate // presented where no certificate is for the host; nil without TLSAddresses
	draining atomic.Bool      // Serve's context has ended
	closed   atomic.Bool      // no connection is accepted any more

	reconciling sync.Mutex      // one Reconcile at a time; guards secrets
	secrets     map[string]bool // shown by metrics.certificateEnd
	reconciled  chan struct{}   // closed after the first Reconcile

	mu        sync.Mutex // guards what follows
	listeners []listener
	conns     map[*conn]struct{}
	empty     chan struct{} // closed when conns becomes empty while draining
}

// state is what a request, or the handshake before it, needs of a snapshot.
type state struct {
	table        *route.Table     // nil before the first Reconcile
	pickers      []balance.Picker // by index of the route in the snapshot; nil where nothing can be sent to
	pools        map[*balance.Endpoint]*pool
	certificates certificates
}

// New returns a Gateway that answers 503 until the first Reconcile: what it serves is not known, so nothing is missing.
func New(o Options) *Gateway {
	o = o.withDefaults()
	g := &Gateway{
		opt:        o,
		log:        o.Log.With("part", "gateway"),
		metrics:    newMetrics(o.Metrics),
		conns:      make(map[*conn]struct{}),
		reconciled: make(chan struct{}),
	}
	g.clock, g.limits = newClock(o)
	g.server = g.newServer()
	g.state.Store(new(state))
	return g
}

// Reconcile makes the gateway serve the routes and certificates of s. Requests in flight end as they began. It does not
// fail.
func (g *Gateway) Reconcile(_ context.Context, s *model.Snapshot) error {
	g.reconciling.Lock()
	defer g.reconciling.Unlock()
	next := &state{
		table:        route.Compile(s),
		pickers:      make([]balance.Picker, len(s.Routes)),
		pools:        make(map[*balance.Endpoint]*pool),
		certificates: newCertificates(s.Certificates),
	}
	b := builder{g: g, snapshot: s, pools: next.pools, ports: make(map[*model.ServicePort]balance.Picker)}
	for i := range s.Routes {
		next.pickers[i] = b.picker(s.Routes[i].Backends)
	}
	old := g.state.Swap(next)
	for e, p := range old.pools {
		if next.pools[e] == nil {
			p.close()
		}
	}
	if old.table == nil {
		close(g.reconciled)
	}
	g.metrics.routes.Set(float64(len(s.Routes)))
	g.showExpiry(s.Certificates)
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
	to := port.Preferred()
	endpoints := make([]*balance.Endpoint, len(to))
	for i, d := range to {
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
