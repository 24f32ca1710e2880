package stream

import (
	"cmp"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/gateway/balance"
)

// A session is one UDP client of one service port, and the socket that speaks to its destination.
type session struct {
	listener *udpListener
	peer     peer
	endpoint *balance.Endpoint
	conn     *net.UDPConn // connected; closing it ends the session
	out      *outbox      // of conn
	admitted admission
	state    *portState
	// replyControl makes replies leave from the address that the client sent to.
	replyControl []byte
	used         atomic.Int64 // uptime of the last datagram in either direction
	stage        atomic.Uint32
}

// The stages of a session. That the client sends again after an answer shows that it got that: its address is not forged.
const (
	begun uint32 = iota
	answered
	lasting
)

func (s *session) touch()                  { s.used.Store(int64(s.listener.proxy.uptime())) }
func (s *session) lastUsed() time.Duration { return time.Duration(s.used.Load()) }

// timeout is how long the session may be idle.
func (s *session) timeout() time.Duration {
	if s.stage.Load() == lasting {
		return s.listener.proxy.opt.UDPIdleTimeout
	}
	return s.listener.proxy.opt.UDPIdleTimeout / 4
}

// begin counts the session. It is paired with finish.
func (s *session) begin() {
	s.listener.proxy.metrics.sessionsTotal.Inc()
	s.listener.proxy.metrics.sessions.Inc()
	s.endpoint.Begin()
	s.state.sessions.Add(1)
	s.state.traffic.begin()
	s.touch()
}

// finish gives back what the session had.
func (s *session) finish() {
	s.listener.end(s)
	s.state.sessions.Add(-1)
	s.state.traffic.end()
	s.endpoint.End()
	s.admitted.release()
	s.listener.proxy.metrics.sessions.Dec()
	s.listener.proxy.udpSessions.give(1)
}

// serve passes the destination's datagrams to the client until the session's socket is closed or the destination
// turns out not to listen.
func (s *session) serve() {
	defer s.finish()
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return
	}
	in := newInbox(&s.listener.proxy.datagrams)
	for s.reply(in, raw) {
	}
}

// reply passes one datagram on, and reports whether to go on.
func (s *session) reply(in *inbox, raw syscall.RawConn) bool {
	p := s.listener.proxy
	if err := raw.Read(in.ready); err != nil {
		return false
	}
	if in.err != nil {
		return !isOver(in.err)
	}
	defer p.datagrams.Put(in.buffer)
	s.touch()
	s.stage.CompareAndSwap(begun, answered)
	n, _, err := s.listener.conn.WriteMsgUDPAddrPort((*in.buffer)[:in.n], s.replyControl, s.peer.client)
	if err != nil {
		p.metrics.dropSend.Inc()
		return !errors.Is(err, net.ErrClosed)
	}
	p.metrics.udpOut.Add(float64(n))
	s.state.traffic.out.Add(uint64(n))
	return true
}

// isOver says whether a session ends by a failure of its socket, such as ECONNREFUSED, the ICMP answer to an earlier datagram.
// That one was too long for the way, which is another such answer, is no fault of the destination; the kernel fragments from then
// on. Nor is it that there is no room.
func isOver(err error) bool {
	return !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS)
}

// An outbox sends datagrams without waiting for room, as a router does: one client whose destination is slow must not hold up
// the others of the listener.
type outbox struct {
	raw     syscall.RawConn
	attempt func(fd uintptr) bool
	payload []byte
	err     error
}

func newOutbox(conn syscall.Conn) (*outbox, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	o := &outbox{raw: raw}
	o.attempt = o.try // made once: a method value allocates
	return o, nil
}

// send fails with EAGAIN if there is no room. One goroutine may send at a time.
func (o *outbox) send(payload []byte) error {
	o.payload = payload
	err := o.raw.Write(o.attempt)
	o.payload = nil
	return cmp.Or(err, o.err)
}

func (o *outbox) try(fd uintptr) bool {
	_, o.err = unix.Write(int(fd), o.payload)
	return true
}

// An inbox receives datagrams into pooled buffers. Unlike a Read of package net it borrows its buffer when a
// datagram is there, not while it waits: 64 KiB for each idle client would be 1 GiB for 16384 of them.
type inbox struct {
	buffers *sync.Pool // Proxy.datagrams
	ready   func(fd uintptr) bool
	buffer  *[]byte // holds n bytes after a success
	n       int
	err     error
}

func newInbox(buffers *sync.Pool) *inbox {
	in := &inbox{buffers: buffers}
	in.ready = in.receive // made once: a method value allocates
	return in
}

// receive is called by RawConn.Read whenever the socket may have become readable; false means that it is not. The
// socket does not block, so that no signal interrupts the call.
func (in *inbox) receive(fd uintptr) bool {
	in.buffer = in.buffers.Get().(*[]byte)
	in.n, in.err = unix.Read(int(fd), *in.buffer)
	if in.err == nil {
		return true
	}
	in.buffers.Put(in.buffer)
	return !errors.Is(in.err, unix.EAGAIN)
}
