// Package stream forwards service ports without the kernel's help: TCP connections and UDP datagrams are taken by
// ordinary sockets and passed on to a destination. It needs no privileges beyond those for the ports themselves.
//
// What a client sees is what the kernel dataplanes of package rules show it: a service port without destinations
// refuses at once, established connections outlive their Service and their endpoint, and a UDP client keeps its
// endpoint for as long as that exists. Where a proxy differs:
//
//   - Endpoints see an address of this machine, as with SNAT; TCP endpoints can be told the client's by the PROXY protocol.
//   - Clients outside of source ranges are dropped without an answer; but with TCP only if the ranges fit into a socket filter, some
//     500 IPv4 networks, and the kernel permits one, which for some takes CAP_NET_ADMIN. Otherwise, and where a limit is exceeded,
//     the kernel has answered before a program learns of the client, and so it is reset at once.
//   - Destinations take turns by weight, which spreads connections more evenly than the kernel's hash of source address and
//     port: a flow that moves to another edge is lost to a proxy in any case. Only session affinity is by hash.
//   - A connection that its destination refuses goes to another one. So does a client whose family no destination has.
//   - Cluster IPs are listened on, but whoever runs the machine has to lead their packets here, once and with privileges:
//     ip route add local 10.96.0.0/12 dev lo
//   - A UDP client is not told that its endpoint refuses (ICMP port unreachable); with its next datagram the choice is made anew.
//   - Each connection takes file descriptors. One Service has no more connections, and UDP clients, than are left for all others.
//   - SCTP is not served.
package stream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"sallyport/gateway/balance"
)

// Options are the settings of a Proxy. The zero value of each field asks for its default.
type Options struct {
	// NodePortAddresses are the local addresses that NodePorts answer on. Default: all, of both families.
	NodePortAddresses []netip.Addr
	// SourceRangesOnNodePorts has a Service's source ranges hold for its NodePorts, too.
	SourceRangesOnNodePorts bool
	// HashSeed is what session affinity is hashed with. Edges with equal seeds send a client to the same endpoint, and so does
	// one edge after a restart.
	HashSeed uint32
	// MaxClients bounds the clients that are remembered at one time, over all Services, for their limits, and once more for
	// exact affinity. One Service has no more of them than are left. Default: 131072, some 20 MB for each of the two.
	MaxClients int
	// DialTimeout bounds the search for a destination that takes a TCP connection, all tries together. Default: 5 s.
	DialTimeout time.Duration
	// MaxConnections bounds the TCP connections at one time, each of which costs two file descriptors, and four more while its
	// data moves. One Service has no more of them than are left; further ones are reset. Default: a quarter of the files that this
	// process may have open (RLIMIT_NOFILE).
	MaxConnections int
	// TCPIdleTimeout is how long a connection may carry no data in either direction before it is reset. Dead peers
	// are found sooner, by TCP keepalive. Default: 24 h, as the kernel dataplanes have it
	// (net.netfilter.nf_conntrack_tcp_timeout_established); negative: no limit.
	TCPIdleTimeout time.Duration
	// UDPIdleTimeout is how long a client is remembered after the last datagram in either direction, and a quarter of it how
	// long one that has not sent again after an answer; both give or take a sixteenth of it. Default: 120 s, so that it is what
	// the kernel dataplanes have (net.netfilter.nf_conntrack_udp_timeout_stream, and _timeout: 30 s).
	UDPIdleTimeout time.Duration
	// MaxUDPSessions bounds the UDP clients remembered at one time, over all service ports; each costs a file
	// descriptor. One Service has no more of them than are left: datagrams of its further clients are dropped, each of which
	// makes room by ending a session that has not sent again after an answer, as sources that are forged do not. Default: 32768.
	MaxUDPSessions int
	// Endpoints holds the state of destinations. Default: a registry of the proxy's own.
	Endpoints *balance.Registry
	// Log receives what no error tells. Default: nothing is logged.
	Log *slog.Logger
	// Metrics is where the sallyport_stream_* and sallyport_l4_* metrics are registered. Default: nowhere.
	Metrics prometheus.Registerer
}

// withDefaults returns o with every default filled in.
func (o Options) withDefaults() Options {
	if len(o.NodePortAddresses) == 0 {
		o.NodePortAddresses = []netip.Addr{anyAddress}
	}
	o.DialTimeout = cmp.Or(o.DialTimeout, 5*time.Second)
	o.TCPIdleTimeout = cmp.Or(o.TCPIdleTimeout, 24*time.Hour)
	o.UDPIdleTimeout = cmp.Or(o.UDPIdleTimeout, 2*time.Minute)
	o.MaxConnections = cmp.Or(o.MaxConnections, openFiles()/4)
	o.MaxUDPSessions = cmp.Or(o.MaxUDPSessions, 32768)
	o.MaxClients = cmp.Or(o.MaxClients, 131072)
	if o.Endpoints == nil {
		o.Endpoints = new(balance.Registry)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// openFiles returns how many files this process may have open.
func openFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // POSIX: no less than 20; Linux: this, unless it was set
	}
	return int(min(limit.Cur, math.MaxInt32))
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
	pipes     pipes
	datagrams sync.Pool // of *[]byte, each maxDatagram long: lent to a session while it has a datagram in hand

	states      *states
	connections budget // of TCP
	udpSessions budget
	unpermitted sync.Once // tells that socket filters are not
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
		pipes:     newPipes(),
		stopping:  make(chan struct{}),

		connections: budget{most: int64(o.MaxConnections)},
		udpSessions: budget{most: int64(o.MaxUDPSessions)},
	}
	p.states = newStates(p.uptime, o.MaxClients)
	if o.Metrics != nil {
		o.Metrics.MustRegister(newTrafficCollector(p))
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
	p.pipes.close()
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
	every := p.opt.UDPIdleTimeout / 4
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
			u.expire(now)
		}
	}
	p.mu.Unlock()
	p.states.sweep(now)
	if p.opt.TCPIdleTimeout > 0 {
		p.resetIdleRelays(now)
	}
}
