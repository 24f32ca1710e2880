package gateway

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// maxIdle bounds the idle connections to one endpoint.
const maxIdle = 256

// A pool holds the idle connections to one endpoint, the one used last on top: under falling load the others age and
// are closed.
type pool struct {
	g      *Gateway
	addr   string
	dialer net.Dialer

	mu     sync.Mutex
	idle   []*upstream // by time of release
	closed bool
}

func newPool(g *Gateway, addr netip.AddrPort) *pool {
	return &pool{g: g, addr: addr.String(), dialer: net.Dialer{Timeout: g.opt.ConnectTimeout}}
}

// A connWish is what a request asks of its connection.
type connWish uint8

const (
	connAny  connWish = iota // an idle one, if there is one, on the chance that the endpoint has just closed it
	connSure                 // the same, but looked at
	connNew
)

// get returns an idle connection, or else a new one.
func (p *pool) get(want connWish) (*upstream, error) {
	for want != connNew {
		up := p.pop()
		if up == nil {
			break
		}
		if up.usable(p.g.clock.now(), want == connSure) {
			up.reused, up.received, up.wary = true, false, false
			p.g.metrics.reuses.Inc()
			return up, nil
		}
		up.tcp.Close()
	}
	// DialTCP would not do: it binds the socket first, so that all endpoints share one range of local ports.
	c, err := p.dialer.DialContext(context.Background(), "tcp", p.addr)
	if err != nil {
		p.g.metrics.dialErrors.Inc()
		return nil, err
	}
	p.g.metrics.dials.Inc()
	return newUpstream(c.(*net.TCPConn), p)
}

func (p *pool) pop() *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return nil
	}
	up := p.idle[last]
	p.idle[last] = nil
	p.idle = p.idle[:last]
	return up
}

// put takes back a connection on which nothing is under way.
func (p *pool) put(up *upstream) {
	up.owner, up.idleSince = nil, p.g.clock.now()
	p.mu.Lock()
	keep := !p.closed && len(p.idle) < maxIdle
	if keep {
		p.idle = append(p.idle, up)
	}
	p.mu.Unlock()
	if !keep {
		up.tcp.Close()
	}
}

// expire closes what has been idle for too long.
func (p *pool) expire(now uint32) {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && now-p.idle[n].idleSince > p.g.limits.backendIdle {
		n++
	}
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.mu.Unlock()
	closeAll(old)
}

// close closes the idle connections, and makes put close the others.
func (p *pool) close() {
	p.mu.Lock()
	old := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	closeAll(old)
}

func closeAll(ups []*upstream) {
	for _, up := range ups {
		up.tcp.Close()
	}
}

// An upstream is a connection to an endpoint. It belongs to one exchange at a time, or to the pool.
type upstream struct {
	tcp       *net.TCPConn
	raw       syscall.RawConn
	peeker    peeker
	br        *bufio.Reader // stays with the connection, so that no byte is lost or read by another
	head      []byte        // storage of request header blocks
	pool      *pool
	owner     *conn  // client connection of the exchange
	idleSince uint32 // tick of the release
	reused    bool   // the connection has served a request before
	received  bool   // a byte of the present response came
	wary      bool   // the last response must not have had a body, but endpoints have been seen to send one
}

func newUpstream(tcp *net.TCPConn, p *pool) (*upstream, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		tcp.Close()
		return nil, err
	}
	up := &upstream{tcp: tcp, raw: raw, pool: p}
	up.br = bufio.NewReaderSize(up, p.g.opt.MaxHeaderBytes)
	return up, nil
}

// usable reports whether a request can be sent on an idle connection. One that was released in this tick or the
// last is only looked at if there is a reason: a system call for each request is too much for the little that it
// would find.
func (up *upstream) usable(now uint32, look bool) bool {
	return now-up.idleSince < 2 && !look && !up.wary || up.peek() == peekNothing
}

// peek looks at what the endpoint has sent. Only the goroutine that reads from it may call it.
func (up *upstream) peek() peekResult { return up.peeker.peek(up.raw) }

// Read reads from the endpoint. It is not progress as such: a header that comes byte by byte has to end in time.
func (up *upstream) Read(p []byte) (int, error) {
	n, err := up.tcp.Read(p)
	up.received = up.received || n > 0
	return n, err
}

// Write writes to the endpoint and notes progress.
func (up *upstream) Write(p []byte) (int, error) {
	n, err := up.tcp.Write(p)
	if n > 0 {
		up.owner.touch()
	}
	return n, err
}

// abort closes the connection in a way that the endpoint cannot take for the end of a message.
func (up *upstream) abort() {
	_ = up.tcp.SetLinger(0)
	up.tcp.Close()
}
