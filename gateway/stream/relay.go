package stream

import (
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A relay is a TCP connection that is being forwarded.
type relay struct {
	client, backend *net.TCPConn
	in, out         meter
	// due is the uptime at which it can have been idle for long enough, and is worth a look. Only sweep uses it.
	due time.Duration
}

func newRelay(client, backend *net.TCPConn, t *traffic) *relay {
	return &relay{client: client, backend: backend, in: meter{port: &t.in}, out: meter{port: &t.out}}
}

// relay passes data both ways until both sides have ended, after an introduction by the PROXY protocol if it is asked for.
// It owns, and closes, both connections.
func (p *Proxy) relay(r *relay, proxyProtocol uint8) {
	r.due = p.uptime() + p.opt.TCPIdleTimeout
	defer r.close()
	if !p.track(r) {
		r.reset()
		return
	}
	defer p.untrack(r)
	early := 0
	if proxyProtocol != 0 {
		var err error
		if early, err = r.introduce(proxyProtocol); err != nil {
			r.reset()
			return
		}
	}
	var replies sync.WaitGroup
	replies.Go(func() { p.metrics.tcpOut.Add(r.pass(p.pipes, r.client, r.backend, &r.out, 0)) })
	p.metrics.tcpIn.Add(r.pass(p.pipes, r.backend, r.client, &r.in, early))
	replies.Wait()
}

// pass moves data from src to dst, inside the kernel where it can (splice), and returns the number of bytes, with those
// that were moved early. The end of src's data becomes the end of dst's, while the other direction goes on. A failure of either
// resets both: data that was cut off must not look complete.
func (r *relay) pass(p pipes, dst, src *net.TCPConn, m *meter, early int) float64 {
	n, err := p.move(dst, src)
	n += int64(early)
	m.read(uint64(n))
	if err != nil {
		r.reset()
		return float64(n)
	}
	_ = dst.CloseWrite() // fails if dst was reset, and the other direction sees to that
	return float64(n)
}

func (r *relay) close() {
	r.client.Close()
	r.backend.Close()
}

func (r *relay) reset() {
	reset(r.client)
	reset(r.backend)
}

// reset closes c with RST instead of FIN.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails if c is closed already
	c.Close()
}

// idle returns how long neither side has sent data, to the millisecond. The kernel keeps these times, so that
// passing data costs nothing for them.
func (r *relay) idle() time.Duration {
	return min(sinceData(r.client), sinceData(r.backend))
}

// sinceData returns the time since c received data or was connected; 0 if c is closed.
func sinceData(c *net.TCPConn) time.Duration {
	info, err := tcpInfo(c)
	if err != nil {
		return 0
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}

// tcpInfo asks the kernel about c (TCP_INFO, tcp(7)).
func tcpInfo(c *net.TCPConn) (info *unix.TCPInfo, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if controlErr != nil {
		return nil, controlErr
	}
	return info, err
}

// track makes r known to those who may cut it. It reports false if the proxy cuts all connections already.
func (p *Proxy) track(r *relay) bool {
	p.relaysMu.Lock()
	defer p.relaysMu.Unlock()
	if p.ctx.Err() != nil {
		return false
	}
	p.relays[r] = struct{}{}
	p.metrics.connections.Inc()
	return true
}

func (p *Proxy) untrack(r *relay) {
	p.relaysMu.Lock()
	defer p.relaysMu.Unlock()
	delete(p.relays, r)
	p.metrics.connections.Dec()
}

// cutRelays resets all connections and gives up those that are still looking for a destination.
func (p *Proxy) cutRelays() {
	p.cut()
	p.relaysMu.Lock()
	defer p.relaysMu.Unlock()
	for r := range p.relays {
		r.reset()
	}
}

// resetIdleRelays resets connections that have been idle for TCPIdleTimeout. A connection is asked about only when
// the timeout could have passed since its last known data.
func (p *Proxy) resetIdleRelays(now time.Duration) {
	p.relaysMu.Lock()
	defer p.relaysMu.Unlock()
	for r := range p.relays {
		if now < r.due {
			continue
		}
		idle := r.idle()
		if idle >= p.opt.TCPIdleTimeout {
			r.reset()
		}
		r.due = now + p.opt.TCPIdleTimeout - idle
	}
}
