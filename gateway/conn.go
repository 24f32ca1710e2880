package gateway

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// A phase is what a client connection is busy with.
type phase uint8

const (
	phaseHead      phase = iota // a request's header is read, or awaited on a new connection
	phaseHandshake              // TLS is agreed on
	phaseIdle                   // between two requests
	phaseWait                   // for the header of the endpoint's response
	phaseRespond                // a response is written
	phaseTunnel                 // upgraded: bytes are relayed both ways
)

// A verdict is why the watcher ended an exchange.
type verdict uint8

const (
	verdictNone       verdict = iota
	verdictSlowClient         // the client sent nothing of its body, or took nothing of the response
	verdictSlowServer         // the endpoint sent nothing
	verdictGone               // the client has closed its side
)

// conn is a client connection. It notes progress for the watcher, and it knows the upstream connection that its
// request is using, so that the watcher can close that one: nobody else waits with a time limit.
type conn struct {
	net.Conn            // what HTTP is spoken over: the socket, or TLS on it
	socket    net.Conn  // a *net.TCPConn
	tls       *tls.Conn // nil if in clear
	g         *Gateway
	peer      netip.AddrPort
	opened    uint32 // tick of the accept
	late      bool   // accepted while draining, on behalf of a successor
	trusted   bool   // peer is one of Options.TrustedProxies
	peerText  string // address of the peer without port
	localText string // address and port that the client connected to
	localPort string
	scheme    string // http or https

	progress atomic.Uint32 // tick of the last byte to or from the client or endpoint, or of the last change of phase
	received atomic.Bool   // a byte came in the present phase
	reading  atomic.Bool   // a Read is under way
	writing  atomic.Bool   // a Write is under way
	splicing atomic.Bool   // a ReadFrom is under way, which waits for either side
	sending  atomic.Bool   // TLS is writing, be it in answer to what a Read has met
	leaving  atomic.Bool   // the watcher has woken the reader, so that it ends the connection

	mu      sync.Mutex // guards what follows; the watcher holds it while it closes an upstream connection
	phase   phase
	since   uint32 // tick at which the phase began
	up      *upstream
	verdict verdict
	taken   uint64 // acknowledged, when a write was last found blocked

	linger    bool        // unread bytes of the client are likely at the close; of the serving goroutine
	handover  *exchange   // has taken the connection over from fasthttp, or is about to; of the serving goroutine
	rest      chan func() // of handover: what is left for the serving goroutine to do
	hijacked  bool        // fasthttp has let go of the connection; of the serving goroutine
	closeOnce sync.Once
}

// newConn wraps and registers an accepted connection. config is nil for one in clear.
func (g *Gateway) newConn(nc net.Conn, config *tls.Config) *conn {
	local := addrPort(nc.LocalAddr())
	c := &conn{Conn: nc, socket: nc, g: g, peer: addrPort(nc.RemoteAddr()), late: g.draining.Load(),
		localText: local.String(), localPort: strconv.Itoa(int(local.Port())), scheme: "http"}
	if config != nil {
		c.tls, c.scheme, c.phase = tls.Server(tlsSocket{nc, c}, config), "https", phaseHandshake
		c.Conn = c.tls
	}
	c.peerText = c.peer.Addr().String()
	for _, p := range g.opt.TrustedProxies {
		c.trusted = c.trusted || p.Contains(c.peer.Addr())
	}
	c.opened = g.clock.now()
	c.since = c.opened
	c.progress.Store(c.since)
	g.mu.Lock()
	g.conns[c] = struct{}{}
	g.mu.Unlock()
	g.metrics.connections.Inc()
	return c
}

// A tlsSocket is the socket that TLS is spoken over. A client can have TLS write without taking part in HTTP, by asking
// for new keys (RFC 8446 4.6.3), and keep a Read from returning by not taking what is written.
type tlsSocket struct {
	net.Conn
	c *conn
}

// Write implements net.Conn.
func (s tlsSocket) Write(p []byte) (int, error) {
	s.c.sending.Store(true)
	n, err := s.Conn.Write(p)
	s.c.sending.Store(false)
	return n, err
}

// addrPort returns a TCP address without the zone of a link-local one: no prefix contains an address with a zone, and no
// header field has room for it.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// connState follows fasthttp's view of a connection between requests.
func connState(nc net.Conn, s fasthttp.ConnState) {
	c, ok := nc.(*conn)
	switch {
	case !ok:
	case s == fasthttp.StateActive:
		c.enter(phaseHead, nil)
	case s == fasthttp.StateIdle:
		c.enter(phaseIdle, nil)
		c.received.Store(false)
	case s == fasthttp.StateHijacked:
		c.hijacked = true
	}
}

// enter begins a phase. up is the upstream connection in use, of which the watcher may close it.
func (c *conn) enter(p phase, up *upstream) {
	now := c.g.clock.now()
	c.mu.Lock()
	c.phase, c.since, c.up = p, now, up
	c.mu.Unlock()
	c.progress.Store(now)
	if c.leaving.Load() { // the watcher meant the phase before
		c.stay()
	}
}

// detach takes the upstream connection out of the watcher's reach and returns why it was closed, if it was.
func (c *conn) detach() verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.verdict
	c.up, c.verdict = nil, verdictNone
	return v
}

// touch notes progress.
func (c *conn) touch() { c.progress.Store(c.g.clock.now()) }

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.reading.Store(true)
	n, err := c.Conn.Read(p)
	c.reading.Store(false)
	if n > 0 {
		c.received.Store(true)
		c.touch()
	} else if err != nil && c.leaving.Load() {
		return c.lastRead(p)
	}
	return n, err
}

// hangUp makes the reader end a connection on which nothing is under way. The watcher cannot: the farewell of TLS may
// have to wait for the client.
func (c *conn) hangUp() {
	c.leaving.Store(true)
	_ = c.SetReadDeadline(past)
}

// lastRead comes after hangUp. A request that has come in meanwhile is served; otherwise the connection looks as if the
// client had ended it.
func (c *conn) lastRead(p []byte) (int, error) {
	c.stay()
	if c.received.Load() || peek(c.socket) == peekBytes {
		return c.Read(p)
	}
	return 0, io.EOF
}

// stay takes back hangUp.
func (c *conn) stay() {
	c.leaving.Store(false)
	_ = c.SetReadDeadline(time.Time{})
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.writing.Store(true)
	n, err := c.Conn.Write(p)
	c.writing.Store(false)
	c.touch()
	return n, err
}

// ReadFrom lets the kernel move the bytes where it can.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	c.splicing.Store(true)
	n, err := io.Copy(c.Conn, r)
	c.splicing.Store(false)
	c.touch()
	return n, err
}

// Close ends the connection. Bytes that the client sent and nobody read would turn the close into a reset, which can
// destroy the answer on its way; so after an answer that came early, what the client still sends is read for a while.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.closeOnce.Do(func() {
		if c.handover != nil {
			c.handover.Close()
		}
		if c.linger {
			c.lingerOn()
		}
		err = c.Conn.Close()
		c.g.forget(c)
	})
	return err
}

func (c *conn) lingerOn() {
	const (
		limit    = 256 << 10
		duration = time.Second
	)
	if c.tls != nil {
		_ = c.tls.CloseWrite() // fails without a handshake, and then there is nothing to say
	}
	if tcp, ok := c.socket.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
		_ = tcp.SetDeadline(time.Now().Add(duration))
		_, _ = io.CopyN(io.Discard, tcp, limit)
	}
}

// breakOff keeps Close from saying over TLS that all was sent (close_notify, RFC 8446 6.1). Without TLS it does nothing:
// the client sees by the framing that a response is not whole.
func (c *conn) breakOff() {
	if c.tls != nil {
		c.socket.Close()
	}
}

// reset closes the connection in a way that looks like an error to the client.
func (c *conn) reset() {
	if tcp, ok := c.socket.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.socket.Close()
}

// cut ends the connection at once, whatever it is doing. It needs c.mu.
func (c *conn) cut() {
	if c.up != nil {
		c.up.abort()
	}
	c.reset()
}

// forget takes the connection off the books.
func (g *Gateway) forget(c *conn) {
	g.metrics.connections.Dec()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
	if g.empty != nil && len(g.conns) == 0 {
		close(g.empty)
		g.empty = nil
	}
}
