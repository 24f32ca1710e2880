// Package stream forwards service ports without the kernel's help: TCP connections and UDP datagrams are taken by
// ordinary sockets and passed on to a destination. It needs no privileges beyond those for the ports themselves.
//
// What a client sees is what the kernel dataplane of package rules shows it: a service port without destinations
// refuses at once, established connections outlive their Service and their endpoint, and a UDP client keeps its
// endpoint for as long as that exists. Client addresses are not kept, as with SNAT.
package stream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/gateway/balance"
)

// Options are the settings of a Proxy. The zero value of each field asks for its default.
type Options struct {
	// NodePortAddresses are the local addresses that NodePorts answer on. Default: all, of both families.
	NodePortAddresses []netip.Addr
	// DialTimeout bounds the search for a destination that takes a TCP connection, all tries together. Default: 5 s.
	DialTimeout time.Duration
	// TCPIdleTimeout is how long a connection may carry no data in either direction before it is reset. Dead peers
	// are found sooner, by TCP keepalive. Default: 1 h; negative: no limit.
	TCPIdleTimeout time.Duration
	// UDPIdleTimeout is how long a client is remembered after the last datagram in either direction, give or take
	// a quarter. Default: 60 s.
	UDPIdleTimeout time.Duration
	// MaxUDPSessions bounds the UDP clients remembered at one time, over all service ports; each costs a file
	// descriptor. Datagrams of further clients are dropped. Default: 16384.
	MaxUDPSessions int
	// Endpoints holds the state of destinations. Default: a registry of the proxy's own.
	Endpoints *balance.Registry
	// Log receives what no error tells. Default: nothing is logged.
	Log *slog.Logger
	// Metrics is where the sallyport_stream_* metrics are registered. Default: nowhere.
	Metrics prometheus.Registerer
}

// withDefaults returns o with every default filled in.
func (o Options) withDefaults() Options {
	if len(o.NodePortAddresses) == 0 {
		o.NodePortAddresses = []netip.Addr{anyAddress}
	}
	o.DialTimeout = cmp.Or(o.DialTimeout, 5*time.Second)
	o.TCPIdleTimeout = cmp.Or(o.TCPIdleTimeout, time.Hour)
	o.UDPIdleTimeout = cmp.Or(o.UDPIdleTimeout, time.Minute)
	o.MaxUDPSessions = cmp.Or(o.MaxUDPSessions, 16384)
	if o.Endpoints == nil {
		o.Endpoints = new(balance.Registry)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// errClosed is the answer to Reconcile after Shutdown or Close.
var errClosed = errors.New("stream: reconcile: the proxy is closed")

// A Proxy listens on the service ports of the latest snapshot and forwards what arrives there. Its methods are safe
// for concurrent use.
type Proxy struct {
	opt     Options
	metrics metrics
	dialer  net.Dialer
	started time.Time // what uptime counts from

	mu        sync.Mutex // held for a whole Reconcile
	listeners map[address]bound
	closed    bool

	stopping  chan struct{}  // closed when listening ends
	listening sync.WaitGroup // accept loops, datagram loops, UDP sessions, the sweeper: all end after stopping

	ctx       context.Context // ends when connections are to be cut
	cut       context.CancelFunc
	relaying  sync.WaitGroup // one for each TCP connection, from accept to close
	relaysMu  sync.Mutex
	relays    map[*relay]struct{}
	udpInUse  atomic.Int64 // UDP sessions of all listeners, against MaxUDPSessions
	datagrams sync.Pool    // of *[]byte, each maxDatagram long: lent to a session while it has a datagram in hand
}

// New returns a proxy that listens nowhere yet. Close or Shutdown ends the goroutines that it starts.
func New(o Options) *Proxy {
	o = o.withDefaults()
	p := &Proxy{
		opt:       o,
		metrics:   newMetrics(o.Metrics),
		started:   time.Now(),
		listeners: make(map[address]bound),
		relays:    make(map[*relay]struct{}),
		stopping:  make(chan struct{}),
	}
	p.datagrams.New = func() any { b := make([]byte, maxDatagram); return &b }
	p.ctx, p.cut = context.WithCancel(context.Background())
	p.listening.Go(p.sweepUntilStopped)
	return p
}

// Close stops listening and cuts all connections. It returns when every goroutine of the proxy has ended.
func (p *Proxy) Close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.Shutdown(ctx) // that connections were cut is what Close is for
}

// Shutdown stops listening, forgets UDP clients and waits until the TCP connections have ended by themselves. When
// ctx ends first, the rest is cut and ctx's error returned. Every goroutine of the proxy has ended then.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.stopListening()
	p.listening.Wait()
	drained := make(chan struct{})
	go func() { // ends with the last connection, and cutRelays sees to that
		p.relaying.Wait()
		close(drained)
	}()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.cutRelays()
	<-drained
	return err
}

func (p *Proxy) stopListening() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	close(p.stopping)
	for a := range p.listeners {
		p.closeListener(a)
	}
}

// uptime is the clock that idle times are measured with; unlike the time of day it never jumps.
func (p *Proxy) uptime() time.Duration { return time.Since(p.started) }

// sweepUntilStopped ends idle connections and sessions, looking four times in the shortest timeout.
func (p *Proxy) sweepUntilStopped() {
	every := p.opt.UDPIdleTimeout
	if p.opt.TCPIdleTimeout > 0 {
		every = min(every, p.opt.TCPIdleTimeout)
	}
	tick := time.NewTicker(max(every/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-p.stopping:
			return
		case <-tick.C:
			p.sweep(p.uptime())
		}
	}
}

// sweep ends what is idle at the time now, as told by uptime.
func (p *Proxy) sweep(now time.Duration) {
	p.mu.Lock()
	for _, b := range p.listeners {
		if u, ok := b.listener.(*udpListener); ok {
			u.expire(now - p.opt.UDPIdleTimeout)
		}
	}
	p.mu.Unlock()
	if p.opt.TCPIdleTimeout > 0 {
		p.resetIdleRelays(now)
	}
}
