package stream

import (
	"context"
	"net"
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

func (p *Proxy) listenTCP(ctx context.Context, a address, t *target) (*tcpListener, error) {
	var config net.ListenConfig // with keepalive, by which dead clients are found
	l, err := config.Listen(ctx, a.network("tcp"), a.hostPort())
	if err != nil {
		return nil, err
	}
	out := &tcpListener{proxy: p, listener: l.(*net.TCPListener)}
	out.aim(t)
	return out, nil
}

func (l *tcpListener) target() *target { return l.current.Load() }
func (l *tcpListener) aim(t *target)   { l.current.Store(t) }
func (l *tcpListener) close()          { l.listener.Close() }

// serve never waits for a destination: each connection has a goroutine for that, which ends with it.
func (l *tcpListener) serve() {
	l.proxy.takeAll(func() error {
		client, err := l.listener.AcceptTCP()
		if err == nil {
			l.proxy.relaying.Go(func() { l.proxy.handle(client, l.target()) })
		}
		return err
	})
}

// handle serves one client from accept to close. A client for whom there is no destination is reset, for a mere
// close would tell it that it was served.
func (p *Proxy) handle(client *net.TCPConn, t *target) {
	backend, endpoint, err := p.dial(t)
	if err != nil {
		p.metrics.unreachable.Inc()
		p.opt.Log.Debug("no destination takes the connection", "service", t.service, "client", client.RemoteAddr(), "err", err)
		reset(client)
		return
	}
	p.metrics.relayed.Inc()
	endpoint.Begin()
	defer endpoint.End()
	p.relay(client, backend)
}

// dial connects to a destination of t: the one whose turn it is, or the next ones if that fails. Each try gets an
// equal share of the time that is left, so that one which does not answer leaves time for the others.
func (p *Proxy) dial(t *target) (conn *net.TCPConn, endpoint *balance.Endpoint, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.opt.DialTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	endpoint, err = t.reach(func(e *balance.Endpoint, left int) error {
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
