package gateway

import "time"

// outlast goes on accepting until the connections from before the drain have ended and only short work is left: that
// is the earliest moment at which nobody has to wait for a successor longer than it takes that to start. What is left of
// them after DrainTime is cut, and so are upgraded connections, which would keep the gateway from ending. The number of
// both is returned.
//
// Short work is what a late connection does in the time that an idle one is given. Late connections carry one request
// each, for it is answered with Connection: close; once nothing is accepted, drain waits for those that go on longer.
func (g *Gateway) outlast() (cut int) {
	timeout := time.NewTimer(g.opt.DrainTime)
	defer timeout.Stop()
	ticker := time.NewTicker(g.clock.tick)
	defer ticker.Stop()
	for g.heldUp() {
		select {
		case <-ticker.C:
		case <-timeout.C:
			return g.cutIf((*conn).bound)
		}
	}
	return 0
}

// heldUp reports whether a connection stands in the way of the gateway's end.
func (g *Gateway) heldUp() bool {
	now := g.clock.now()
	for _, c := range g.connections() {
		if c.holdsUp(now) {
			return true
		}
	}
	return false
}

// holdsUp reports whether the connection has more than short work to do. One that has not asked for anything has none.
func (c *conn) holdsUp(now uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	working := c.phase == phaseWait || c.phase == phaseRespond
	return c.bound() || working && now-c.opened > c.g.limits.drainIdle
}

// bound reports whether the connection cannot go on beyond DrainTime. It needs c.mu.
func (c *conn) bound() bool { return !c.late || c.phase == phaseTunnel }

// drain waits until all connections have ended, cuts what is left after DrainTime and returns the number of those.
func (g *Gateway) drain() int {
	g.mu.Lock()
	g.empty = make(chan struct{})
	if len(g.conns) == 0 {
		close(g.empty)
	}
	empty := g.empty
	g.mu.Unlock()

	timeout := time.NewTimer(g.opt.DrainTime)
	defer timeout.Stop()
	select {
	case <-empty:
		return 0
	case <-timeout.C:
	}
	return g.cutIf(func(*conn) bool { return true })
}

// cutIf ends the connections for which the condition holds, and returns their number.
func (g *Gateway) cutIf(condition func(*conn) bool) (cut int) {
	for _, c := range g.connections() {
		c.mu.Lock()
		if condition(c) {
			c.cut()
			cut++
		}
		c.mu.Unlock()
	}
	return cut
}

// connections returns the open client connections.
func (g *Gateway) connections() []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*conn, 0, len(g.conns))
	for c := range g.conns {
		all = append(all, c)
	}
	return all
}
