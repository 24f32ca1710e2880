package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// readUpgrade decides whether the request's wish for another protocol (RFC 9110 7.8) is passed on. If not, the request
// is an ordinary one, as a server may always take it. A body would have to be read before the protocol changes, and
// HTTP and TLS are spoken with the gateway, not past it: h2c is how requests were smuggled past proxies.
func (r *request) readUpgrade() {
	if r.upgrade == nil {
		return
	}
	wanted := len(r.upgrade) > 0 && !r.version1 && r.framing == framingNone && string(r.method) != fasthttp.MethodHead && r.isNamed([]byte("upgrade"))
	for protocol, rest := nextToken(r.upgrade); wanted && (len(protocol) > 0 || len(rest) > 0); protocol, rest = nextToken(rest) {
		wanted = passable(protocol)
	}
	if !wanted {
		r.upgrade = nil
	}
}

// passable reports whether the protocol, a name with or without a version, can be spoken through the gateway.
func passable(protocol []byte) bool {
	name, version, versioned := bytes.Cut(protocol, []byte{'/'})
	if !isToken(name) || versioned && !isToken(version) {
		return false
	}
	for _, own := range []string{"h2c", "h2", "http", "tls"} {
		if bytes.EqualFold(name, []byte(own)) {
			return false
		}
	}
	return true
}

// switches reports whether the response changes to a protocol that the client asked for.
func (x *exchange) switches() bool {
	to := x.ctx.Response.Header.Peek(fasthttp.HeaderUpgrade)
	for protocol, rest := nextToken(x.req.upgrade); len(protocol) > 0 || len(rest) > 0; protocol, rest = nextToken(rest) {
		if bytes.EqualFold(protocol, to) {
			return true
		}
	}
	return false
}

// upgrade relays the protocol that the endpoint has switched to, on connections that nothing else will use. It goes on
// whatever happens to the route and the endpoint in later snapshots.
func (x *exchange) upgrade() {
	x.leave()
	x.g.metrics.countCode(fasthttp.StatusSwitchingProtocols)
	x.c.enter(phaseTunnel, x.up)
	head := appendSwitch(nil, &x.ctx.Response.Header)
	x.takeOver(func(client io.Reader) func() {
		x.g.metrics.upgraded.Inc()
		if x.sendBuffered(head) != nil || x.forwardEarly(client) != nil {
			x.c.reset()
		}
		x.up.br, x.up.head = nil, nil // a tunnel can be idle for long
		return x.tunnel
	})
}

// appendSwitch appends the header block of a 101, whose protocol is the only field of the hop in it.
func appendSwitch(dst []byte, h *fasthttp.ResponseHeader) []byte {
	protocol := bytes.Clone(h.Peek(fasthttp.HeaderUpgrade))
	cleanResponse(h)
	dst = append(dst, "HTTP/1.1 101 Switching Protocols\r\n"...)
	for name, value := range h.All() {
		if kind := kindOf(name); kind != fieldPlain && kind != fieldAuthority {
			continue
		}
		if rest, ok := bytes.CutPrefix(name, []byte("Sec-Websocket-")); ok {
			name = append([]byte("Sec-WebSocket-"), rest...) // some clients know no other spelling than RFC 6455's
		}
		dst = append(append(dst, name...), ": "...)
		dst = append(append(dst, value...), "\r\n"...)
	}
	return append(append(append(dst, "Connection: Upgrade\r\nUpgrade: "...), protocol...), "\r\n\r\n"...)
}

// tunnel relays both ways until both sides have ended, or one has failed.
func (x *exchange) tunnel() {
	defer x.g.metrics.upgraded.Dec()
	c, tcp := x.c, x.up.tcp
	client, ok := c.Conn.(duplex)
	if !ok {
		c.reset()
		return
	}
	var replies sync.WaitGroup
	fail := func(err error) {
		if err != nil { // what was cut off must not look complete
			c.mu.Lock()
			c.cut()
			c.mu.Unlock()
		}
	}
	replies.Go(func() { fail(pass(client, tcp)) })
	fail(pass(tcp, client))
	replies.Wait()
	tcp.Close() // and no reset, which would overtake what was sent last
}

// sendBuffered sends the client the header and what came with it.
func (x *exchange) sendBuffered(head []byte) error {
	more, _ := x.up.br.Peek(x.up.br.Buffered())
	_, err := x.c.Write(append(head, more...))
	return err
}

// forwardEarly sends the endpoint what was read from the client already, on the heels of its request.
func (x *exchange) forwardEarly(early io.Reader) error {
	_ = x.c.SetReadDeadline(past) // the end of what is in buffers
	if _, err := io.Copy(x.up.tcp, early); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return x.c.SetReadDeadline(time.Time{})
}

// duplex is a connection either direction of which can end by itself: TCP by FIN, TLS by close_notify.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// pass moves what src sends to dst until src ends, and then ends dst's incoming direction.
func pass(dst, src duplex) error {
	r, err := newReader(src)
	if err != nil {
		return err
	}
	to, toTCP := dst.(*net.TCPConn)
	for {
		bulk, err := r.move(dst)
		if bulk && err == nil && toTCP && r.raw != nil {
			err = r.splice(to)
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = dst.CloseWrite() // fails if dst was reset, and the other direction sees to that
			return nil
		case err != nil:
			return err
		}
	}
}

// A reader reads from one side of a tunnel. Most tunnels are idle, so it holds next to nothing while there is nothing to
// read: no buffer for a socket, and a small one for TLS, which keeps what it has deciphered to itself.
type reader struct {
	src   duplex
	raw   syscall.RawConn       // nil if src is no socket
	try   func(fd uintptr) bool // what raw is read with
	small []byte                // what TLS is waited for with

	buf copyBuffer
	n   int
	err error
}

// smallRead is more than most messages that come one by one.
const smallRead = 512

func newReader(src duplex) (*reader, error) {
	tcp, ok := src.(*net.TCPConn)
	if !ok {
		return &reader{src: src, small: make([]byte, smallRead)}, nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &reader{src: src, raw: raw}
	r.try = r.read
	return r, nil
}

// move moves what there is, and reports whether there is likely to be more.
func (r *reader) move(dst io.Writer) (bulk bool, err error) {
	if r.raw == nil {
		err = r.readTLS()
	} else {
		err = r.raw.Read(r.try)
	}
	if err != nil {
		return false, err
	}
	defer r.giveBack()
	if r.n > 0 {
		if _, err := dst.Write(r.buf[:r.n]); err != nil {
			return false, err
		}
	}
	return r.n == len(r.buf), r.err
}

func (r *reader) giveBack() {
	copyBuffers.Put(r.buf)
	r.buf = nil // or it could not be freed
}

// read reads from the socket, and reports false if that has to be waited for.
func (r *reader) read(fd uintptr) bool {
	r.buf = copyBuffers.Get().(copyBuffer)
	r.n, r.err = syscall.Read(int(fd), r.buf[:])
	for errors.Is(r.err, syscall.EINTR) {
		r.n, r.err = syscall.Read(int(fd), r.buf[:])
	}
	switch {
	case errors.Is(r.err, syscall.EAGAIN):
		r.giveBack()
		return false
	case r.n == 0:
		r.err = io.EOF
	}
	return true
}

// readTLS waits with the small buffer, and if that was too small reads what is left of the record, which does not wait.
func (r *reader) readTLS() error {
	n, err := r.src.Read(r.small)
	r.buf = copyBuffers.Get().(copyBuffer)
	r.n, r.err = copy(r.buf[:], r.small[:n]), err
	if n < len(r.small) || err != nil {
		return nil
	}
	_ = r.src.SetReadDeadline(past)
	n, err = r.src.Read(r.buf[r.n:])
	r.n += n
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		r.err = err
	}
	return r.src.SetReadDeadline(time.Time{})
}

// splice lets the kernel move what has come in bulk from one socket to the other. It takes no more than is there: while
// it waited it would hold a pipe, which is two more open files.
func (r *reader) splice(to *net.TCPConn) error {
	for {
		there := 0
		if err := r.raw.Control(func(fd uintptr) { there, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
			return err
		}
		if there < len(r.buf) {
			return nil
		}
		if _, err := to.ReadFrom(&io.LimitedReader{R: r.src, N: int64(there)}); err != nil {
			return err
		}
	}
}

// checkTunnel ends an upgraded connection that has been silent for too long. How long that was the kernel knows, so that
// relaying need not keep count. It needs c.mu.
func (c *conn) checkTunnel(now uint32) {
	if c.up == nil {
		return // it has ended, and its client is being told
	}
	client, endpoint := tcpInfo(c.socket), tcpInfo(c.up.tcp)
	if client == nil || endpoint == nil {
		return // it is about to end
	}
	silent := time.Duration(min(client.Last_data_recv, endpoint.Last_data_recv)) * time.Millisecond
	if silent < c.g.opt.UpgradeIdleTimeout {
		c.progress.Store(now - uint32(silent/c.g.clock.tick))
		return
	}
	c.g.metrics.errors.WithLabelValues(reasonLimit).Inc()
	c.cut()
}
