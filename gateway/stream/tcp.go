package stream

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"sallyport/gateway/balance"
)

// minTry is the least time a try is given, enough for one SYN to be lost and sent again (RFC 6298: after 1 s).
const minTry = 2 * time.Second

// A tcpListener accepts the connections of one service port.
type tcpListener struct {
	proxy    *Proxy
	listener *net.TCPListener
	current  atomic.Pointer[target]
}

func (p *Proxy) listenTCP(ctx context.Context, w want) (*tcpListener, error) {
	config := net.ListenConfig{Control: w.control} // with keepalive, by which dead clients are found
	config.SetMultipathTCP(false)                  // its sockets take no filter, and what they carry cannot be spliced
	l, err := config.Listen(ctx, w.network("tcp"), w.hostPort())
	if err != nil {
		return nil, err
	}
	out := &tcpListener{proxy: p, listener: l.(*net.TCPListener)}
	out.aim(p.newTarget(w))
	return out, nil
}

func (l *tcpListener) target() *target { return l.current.Load() }
func (l *tcpListener) close()          { l.listener.Close() }

// aim changes nothing for connections that were accepted before.
func (l *tcpListener) aim(t *target) {
	before := l.current.Swap(t)
	if before == nil && t.ranges == nil || before != nil && sameRanges(before.ranges, t.ranges) {
		return
	}
	l.filterSources(t)
}

// serve never waits for a destination: each connection has a goroutine for that, which ends with it.
func (l *tcpListener) serve() {
	l.proxy.takeAll(func() error {
		client, err := l.listener.AcceptTCP()
		if err == nil {
			l.proxy.receive(client, l.target())
		}
		return err
	})
}

// receive has a client served, or resets it if the Service does not want it: the kernel has answered it already, so that it
// cannot be ignored any more.
func (p *Proxy) receive(client *net.TCPConn, t *target) {
	from := addrPort(client.RemoteAddr()).Addr()
	if !inRanges(t.ranges, from) {
		p.metrics.deny(denySource)
		reset(client)
		return
	}
	admitted, denied := p.admit(t.state, from)
	if denied != "" {
		p.metrics.deny(denied)
		reset(client)
		return
	}
	p.relaying.Go(func() {
		defer p.release(t.state, admitted)
		p.handle(client, from, t)
	})
}

// admit counts a new connection, if there is room and the Service wants it. It is paired with release.
func (p *Proxy) admit(s *portState, from netip.Addr) (admission, denial) {
	if !p.connections.take(int(s.connections.Load())) {
		return admission{}, denyFull
	}
	admitted, denied := s.limiter.admit(from)
	if denied != "" {
		p.connections.give(1)
		return admission{}, denied
	}
	s.connections.Add(1)
	return admitted, ""
}

func (p *Proxy) release(s *portState, a admission) {
	s.connections.Add(-1)
	a.release()
	p.connections.give(1)
}

// handle serves one client to the end. A client for whom there is no destination is reset, for a mere close would tell it
// that it was served.
func (p *Proxy) handle(client *net.TCPConn, from netip.Addr, t *target) {
	backend, endpoint, err := p.dial(t, from)
	if err != nil {
		p.metrics.unreachable.Inc()
		p.opt.Log.Debug("no destination takes the connection", "service", t.service, "client", from, "err", err)
		reset(client)
		return
	}
	p.metrics.relayed.Inc()
	endpoint.Begin()
	defer endpoint.End()
	t.state.traffic.begin()
	defer t.state.traffic.end()
	p.relay(newRelay(client, backend, t.state.traffic), t.proxyProtocol)
}

// dial connects to the destination of t chosen for the client, or the next ones if that fails. Each try gets an
// equal share of the time that is left, so that one which does not answer leaves time for the others.
func (p *Proxy) dial(t *target, client netip.Addr) (conn *net.TCPConn, endpoint *balance.Endpoint, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.opt.DialTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	endpoint, err = t.reach(client, func(e *balance.Endpoint, left int) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		conn, err = p.connect(ctx, e, max(time.Until(deadline)/time.Duration(left), minTry))
		return err
	})
	return conn, endpoint, err
}

// connect waits up to limit for one destination to take a connection. DialTCP would not do: it binds a local port first, and so
// shares the ephemeral ports of one destination among all.
func (p *Proxy) connect(ctx context.Context, e *balance.Endpoint, limit time.Duration) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := p.dialer.DialContext(ctx, "tcp", e.Addr().String())
	if err != nil {
		p.metrics.dialFailures.Inc()
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
