package gateway

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A clock counts ticks. Reading it is one load, which a request can afford many times.
type clock struct {
	tick  time.Duration
	ticks *atomic.Uint32
}

func (c clock) now() uint32 { return c.ticks.Load() }

// limits are the time limits of Options in ticks.
type limits struct {
	head, idle, read, response, stream, write, backendIdle, upgrade uint32
	probe                                                           uint32 // without progress, before it is asked whether the client is still there
	drainIdle                                                       uint32 // an idle connection is left open for this long while draining
}

// newClock returns a clock whose tick is short against the time limits.
func newClock(o Options) (clock, limits) {
	tick := 100 * time.Millisecond
	for _, d := range []time.Duration{o.HeaderTimeout, o.IdleTimeout, o.ReadTimeout, o.ResponseTimeout,
		o.StreamTimeout, o.WriteTimeout, o.BackendIdleTimeout, o.UpgradeIdleTimeout} {
		tick = min(tick, max(d/4, time.Millisecond))
	}
	ticks := func(d time.Duration) uint32 { return uint32((d + tick - 1) / tick) }
	return clock{tick: tick, ticks: new(atomic.Uint32)}, limits{
		head: ticks(o.HeaderTimeout), idle: ticks(o.IdleTimeout), read: ticks(o.ReadTimeout),
		response: ticks(o.ResponseTimeout), stream: ticks(o.StreamTimeout), write: ticks(o.WriteTimeout),
		backendIdle: ticks(o.BackendIdleTimeout), upgrade: ticks(o.UpgradeIdleTimeout),
		probe: ticks(250 * time.Millisecond), drainIdle: ticks(500 * time.Millisecond),
	}
}

// watch drives the clock and ends what has made no progress for too long, until ctx ends.
func (g *Gateway) watch(ctx context.Context) {
	ticker := time.NewTicker(g.clock.tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := g.clock.ticks.Add(1)
		for _, c := range g.connections() {
			c.check(now)
		}
		for _, p := range g.state.Load().pools {
			p.expire(now)
		}
	}
}

// check ends what the connection is doing if it has taken too long.
func (c *conn) check(now uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := &c.g.limits
	quiet := now - c.progress.Load()
	if quiet > limit.write/2 && c.blocked() {
		c.checkTaken()
		return
	}
	switch c.phase {
	case phaseHandshake:
		c.checkHandshake(now - c.since)
	case phaseHead:
		c.checkHead(now - c.since)
	case phaseIdle:
		if quiet > limit.idle || c.g.draining.Load() && quiet > limit.drainIdle {
			c.hangUp()
		}
	case phaseTunnel:
		if quiet > limit.upgrade {
			c.checkTunnel(now)
		}
	case phaseWait:
		switch uploading := c.reading.Load(); {
		case uploading && quiet > limit.read:
			c.end(verdictSlowClient)
		case !uploading && quiet > limit.response:
			c.end(verdictSlowServer)
		case !uploading && quiet >= limit.probe && c.gone(now):
			c.end(verdictGone)
		}
	case phaseRespond:
		switch {
		case c.writing.Load():
		case quiet > limit.stream:
			c.end(verdictSlowServer)
		case !c.reading.Load() && quiet >= limit.probe && c.gone(now):
			c.end(verdictGone)
		}
	}
}

// blocked reports whether there is something for the client that the kernel does not take. While the kernel moves
// bytes between two sockets, that is so if the endpoint has sent more. A tunnel may block: it has a limit of its own.
func (c *conn) blocked() bool {
	return c.writing.Load() || c.sending.Load() && c.phase != phaseTunnel ||
		c.splicing.Load() && c.up != nil && new(peeker).peek(c.up.raw) == peekBytes
}

// checkTaken comes twice in the time limit for writing while the connection is blocked, and ends it if the client has
// acknowledged nothing in between. A write that has not returned does not tell: the kernel wakes it only when a third
// of what may be megabytes was taken.
func (c *conn) checkTaken() {
	if taken := c.acknowledged(); taken != c.taken {
		c.taken = taken
		c.touch()
		return
	}
	c.end(verdictSlowClient)
	c.cut()
}

// acknowledged returns how many bytes the client has acknowledged, plus one.
func (c *conn) acknowledged() uint64 {
	if info := tcpInfo(c.socket); info != nil {
		return info.Bytes_acked + 1
	}
	return 0
}

// tcpInfo returns what the kernel knows about a socket, or nil if it is closed.
func tcpInfo(socket net.Conn) *unix.TCPInfo {
	var info *unix.TCPInfo
	control(socket, func(fd uintptr) {
		info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info
}

// control calls f with the descriptor of the socket, unless that is closed.
func control(socket net.Conn, f func(fd uintptr)) {
	if sc, ok := socket.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			_ = raw.Control(f)
		}
	}
}

// checkHandshake ends a handshake that takes too long. While it goes on, the connection is not HTTP's yet and nobody
// has to be told.
func (c *conn) checkHandshake(age uint32) {
	if age <= c.patience() {
		return
	}
	if info := tcpInfo(c.socket); age > c.g.limits.head || info == nil || info.Bytes_received == 0 {
		c.verdict = verdictSlowClient
		c.socket.Close()
	}
}

// checkHead ends the wait for a request's header: with 408 if some of it came, else without a word.
func (c *conn) checkHead(age uint32) {
	switch {
	case !c.received.Load():
		if age > c.patience() {
			c.hangUp()
		}
	case age > c.g.limits.head:
		_ = c.SetReadDeadline(past)
	}
}

// patience is how long a connection may stay without sending anything. One that is accepted has a claim to be served,
// but not to hold up the end of the gateway.
func (c *conn) patience() uint32 {
	if c.g.closed.Load() || c.g.draining.Load() && !c.late {
		return c.g.limits.drainIdle
	}
	return c.g.limits.head
}

// end closes the upstream connection, which wakes the handler. It needs c.mu.
func (c *conn) end(v verdict) {
	if c.up == nil || c.verdict != verdictNone {
		return
	}
	c.verdict = v
	c.up.abort()
}

// past is a deadline that wakes a Read at once.
var past = time.Unix(1, 0)

// gone asks every now and then whether the client has closed its side. A client that only half-closes counts as gone,
// as with nginx and net/http: to tell it apart would mean to keep working for all that left. Over TLS the end of the
// connection is behind a close_notify that nobody has read yet, so it is the kernel that is asked.
func (c *conn) gone(now uint32) bool {
	switch {
	case now%c.g.limits.probe != 0:
		return false
	case c.tls == nil:
		return peek(c.socket) == peekClosed
	}
	info := tcpInfo(c.socket)
	return info == nil || info.State != unix.BPF_TCP_ESTABLISHED
}

// peek looks at a socket as peeker does; it allocates.
func peek(socket net.Conn) peekResult {
	p := peeker{result: peekClosed}
	control(socket, p.recv)
	return p.result
}

// A peekResult says what a socket has for its reader.
type peekResult uint8

const (
	peekNothing peekResult = iota
	peekBytes
	peekClosed
)

// A peeker looks at a socket without allocating, once it has done so for the first time.
type peeker struct {
	result peekResult
	look   func(fd uintptr)
	b      [1]byte
}

// peek looks at the socket without waiting and without taking anything. It does not get in the way of a Read.
func (p *peeker) peek(raw syscall.RawConn) peekResult {
	if p.look == nil {
		p.look = p.recv
	}
	p.result = peekClosed
	_ = raw.Control(p.look) // an error means that the socket is closed
	return p.result
}

func (p *peeker) recv(fd uintptr) {
	n, _, err := syscall.Recvfrom(int(fd), p.b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	switch {
	case n > 0:
		p.result = peekBytes
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		p.result = peekNothing
	}
}
