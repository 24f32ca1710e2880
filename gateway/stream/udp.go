package stream

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/gateway/balance"
)

// maxDatagram is more than the payload of any UDP datagram that is not a jumbogram (RFC 768: a 16-bit length).
const maxDatagram = 1 << 16

// A udpListener takes the datagrams of one service port and keeps its clients apart by sessions.
type udpListener struct {
	proxy   *Proxy
	conn    *net.UDPConn
	current atomic.Pointer[target] // written under mu, so that no session begins at a destination that was dropped

	mu       sync.Mutex
	sessions map[peer]*session
	closed   bool
}

// A peer tells one client of a listener from another: its address, and the address of this machine that it uses.
type peer struct {
	client netip.AddrPort
	local  netip.Addr
}

func (p *Proxy) listenUDP(ctx context.Context, w want) (*udpListener, error) {
	config := net.ListenConfig{Control: func(network, address string, raw syscall.RawConn) error {
		return cmp.Or(w.control(network, address, raw), enablePacketInfo(network, raw))
	}}
	c, err := config.ListenPacket(ctx, w.network("udp"), w.hostPort())
	if err != nil {
		return nil, err
	}
	l := &udpListener{proxy: p, conn: c.(*net.UDPConn), sessions: make(map[peer]*session)}
	l.aim(p.newTarget(w))
	return l, nil
}

func (l *udpListener) target() *target { return l.current.Load() }

// aim ends the sessions whose destination is not among the new ones; their clients choose again.
func (l *udpListener) aim(t *target) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.Store(t)
	kept := t.all()
	l.endWhere(func(s *session) bool { return !kept[s.endpoint] })
}

// expire ends the sessions that are idle at the uptime now.
func (l *udpListener) expire(now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endWhere(func(s *session) bool { return now-s.lastUsed() >= s.timeout() })
}

// maxLooks bounds the search for a session to end, as the kernel's early_drop does.
const maxLooks = 8

// makeRoom ends one session, any that is not lasting, if a few looks find one. l.mu is held.
func (l *udpListener) makeRoom() {
	looks := 0
	for who, s := range l.sessions {
		if s.stage.Load() != lasting {
			s.conn.Close()
			delete(l.sessions, who)
			return
		}
		if looks++; looks == maxLooks {
			return
		}
	}
}

// close ends all sessions, whose replies have no socket to leave by any more.
func (l *udpListener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.conn.Close()
	l.endWhere(func(*session) bool { return true })
}

// endWhere ends the sessions that the condition holds for. l.mu is held.
func (l *udpListener) endWhere(cond func(*session) bool) {
	maps.DeleteFunc(l.sessions, func(_ peer, s *session) bool {
		if !cond(s) {
			return false
		}
		s.conn.Close()
		return true
	})
}

// end ends one session, however often it is called.
func (l *udpListener) end(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[s.peer] == s {
		delete(l.sessions, s.peer)
	}
	s.conn.Close()
}

// serve borrows a buffer when a datagram is there, as sessions do.
func (l *udpListener) serve() {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return
	}
	control := make([]byte, maxPacketInfo)
	l.proxy.takeAll(func() error {
		if err := raw.Read(readable); err != nil {
			return err
		}
		payload := l.proxy.datagrams.Get().(*[]byte)
		defer l.proxy.datagrams.Put(payload)
		n, oobn, _, client, err := l.conn.ReadMsgUDPAddrPort(*payload, control)
		if err == nil {
			l.forward((*payload)[:n], control[:oobn], client)
		}
		return err
	})
}

// readable says whether a socket has something to read, or an error to tell.
func readable(fd uintptr) bool {
	waiting := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(waiting[:], 0)
	return n > 0 || err != nil
}

// forward sends one datagram of a client to the client's destination. It does not allocate for a known client.
func (l *udpListener) forward(payload, control []byte, client netip.AddrPort) {
	s := l.session(peer{client, localAddr(control)}, control)
	if s == nil {
		return
	}
	s.touch()
	if s.stage.Load() == answered {
		s.stage.Store(lasting)
	}
	err := s.out.send(payload)
	if errors.Is(err, unix.EMSGSIZE) {
		err = s.out.send(payload) // the failure may be an earlier one's
	}
	if err != nil {
		l.proxy.metrics.dropSend.Inc()
		if isOver(err) {
			l.end(s)
		}
		return
	}
	l.proxy.metrics.udpIn.Add(float64(len(payload)))
	s.state.traffic.in.Add(uint64(len(payload)))
}

// session returns the session of a client, which is begun for a new one; nil if it cannot be.
func (l *udpListener) session(who peer, control []byte) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sessions[who]; s != nil {
		return s
	}
	if l.closed {
		return nil
	}
	s := l.begin(who, control)
	if s != nil {
		l.sessions[who] = s
		l.proxy.listening.Go(s.serve)
	}
	return s
}

// begin makes a session with the destination chosen for the client, unless the Service does not want it: then its datagrams
// are dropped. l.mu is held.
func (l *udpListener) begin(who peer, control []byte) *session {
	p, t, from := l.proxy, l.target(), plain(who.client.Addr())
	if !inRanges(t.ranges, from) {
		p.metrics.deny(denySource)
		return nil
	}
	if !p.udpSessions.take(int(t.state.sessions.Load())) {
		p.metrics.dropTableFull.Inc()
		l.makeRoom()
		return nil
	}
	admitted, denied := t.state.limiter.admit(from)
	if denied != "" {
		p.udpSessions.give(1)
		p.metrics.deny(denied)
		return nil
	}
	conn, endpoint, err := connectUDP(t, from)
	var out *outbox
	if err == nil {
		out, err = newOutbox(conn)
	}
	if err != nil {
		admitted.release()
		p.udpSessions.give(1)
		p.metrics.dropUnreachable.Inc()
		p.opt.Log.Debug("no destination takes the datagram", "service", t.service, "client", who.client, "err", err)
		return nil
	}
	s := &session{listener: l, peer: who, endpoint: endpoint, conn: conn, out: out, admitted: admitted, state: t.state,
		replyControl: replyControl(slices.Clone(control))}
	s.begin()
	return s
}

// connectUDP makes a socket that exchanges datagrams with one destination only. Nothing is sent; it fails where this
// machine knows no way there.
func connectUDP(t *target, client netip.Addr) (conn *net.UDPConn, endpoint *balance.Endpoint, err error) {
	endpoint, err = t.reach(client, func(e *balance.Endpoint, _ int) error {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(e.Addr()))
		return err
	})
	return conn, endpoint, err
}
