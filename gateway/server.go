package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// newServer returns the fasthttp server that speaks HTTP/1 with clients. It adds nothing of its own to messages, has
// no time limits (the watcher has) and never parses a body.
func (g *Gateway) newServer() *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      g.handle,
		HeaderReceived:               headerReceived,
		ExpectHandler:                g.expect,
		ErrorHandler:                 g.refuse,
		ConnState:                    connState,
		StreamRequestBody:            true,
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultDate:                true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		ReadBufferSize:               g.opt.MaxHeaderBytes,
		Logger:                       serverLog{g.log},
	}
}

// serverLog hands fasthttp's messages, which are about single clients, to the debug level.
type serverLog struct{ log *slog.Logger }

// Printf implements fasthttp.Logger.
func (l serverLog) Printf(format string, args ...any) {
	l.log.Debug("http server", "message", fmt.Sprintf(format, args...))
}

// Listen opens the listeners of Options.Addresses. If one fails, none stays open.
func (g *Gateway) Listen() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, address := range g.opt.Addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			g.closeListeners()
			return fmt.Errorf("listen for HTTP on %s: %w", address, err)
		}
		g.listeners = append(g.listeners, l)
	}
	return nil
}

// Addrs returns the addresses that Listen bound, in the order of Options.Addresses.
func (g *Gateway) Addrs() []net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	addrs := make([]net.Addr, len(g.listeners))
	for i, l := range g.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// closeListeners needs g.mu.
func (g *Gateway) closeListeners() {
	for _, l := range g.listeners {
		l.Close()
	}
	g.listeners = nil
}

// Serve accepts connections until ctx ends. It then closes the listeners, answers requests with Connection: close,
// and returns when all connections have ended, or were cut after DrainTime. Listen comes first. A Gateway serves once.
func (g *Gateway) Serve(ctx context.Context) error {
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	var watcher, acceptors, connections sync.WaitGroup
	watcher.Go(func() { g.watch(watching) })
	g.mu.Lock()
	listeners := g.listeners
	g.mu.Unlock()
	for _, l := range listeners {
		acceptors.Go(func() { g.accept(ctx, l, &connections) })
	}
	<-ctx.Done()
	g.draining.Store(true)
	g.mu.Lock()
	g.closeListeners()
	g.mu.Unlock()
	acceptors.Wait()
	cut := g.drain()
	connections.Wait()
	stopWatching()
	watcher.Wait()
	for _, p := range g.state.Load().pools {
		p.close()
	}
	g.log.InfoContext(ctx, "http drained", "cut", cut)
	return nil
}

// accept serves each connection of the listener in a goroutine that connections counts, until the listener is closed.
func (g *Gateway) accept(ctx context.Context, l net.Listener, connections *sync.WaitGroup) {
	const pause = 50 * time.Millisecond // after an error such as "too many open files", which passes
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			c := g.newConn(nc)
			connections.Go(func() { g.serveConn(c) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			g.metrics.acceptErrors.Inc()
			g.log.WarnContext(ctx, "accept failed", "address", l.Addr().String(), "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

func (g *Gateway) serveConn(c *conn) {
	if err := g.server.ServeConn(c); err != nil {
		g.log.Debug("connection ended", "peer", c.peer.String(), "err", err)
	}
	c.ended.Wait() // a connection taken over by a handler goes on for a while
}

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
	left := g.connections()
	for _, c := range left {
		c.mu.Lock()
		c.cut()
		c.mu.Unlock()
	}
	return len(left)
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
