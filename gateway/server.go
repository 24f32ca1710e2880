package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
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
		KeepHijackedConns:            true, // serveConn closes them
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

// A listener is where connections come in; config is nil where HTTP is spoken in clear.
type listener struct {
	net.Listener
	config *tls.Config
}

// Listen opens the listeners of Options.Addresses and TLSAddresses. If one fails, none stays open.
func (g *Gateway) Listen() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.listen(g.opt.Addresses, "HTTP", nil)
	if err == nil && len(g.opt.TLSAddresses) > 0 {
		if g.fallback, err = selfSigned(time.Now()); err == nil {
			err = g.listen(g.opt.TLSAddresses, "HTTPS", g.newTLSConfig())
		}
	}
	if err != nil {
		g.closeListeners()
	}
	return err
}

// listen needs g.mu.
func (g *Gateway) listen(addresses []string, protocol string, config *tls.Config) error {
	open := g.opt.Listen
	if open == nil {
		open = new(net.ListenConfig).Listen
	}
	for _, address := range addresses {
		l, err := open(context.Background(), "tcp", address)
		if err != nil {
			return fmt.Errorf("listen for %s on %s: %w", protocol, address, err)
		}
		g.listeners = append(g.listeners, listener{l, config})
	}
	return nil
}

// Addrs returns the addresses that Listen bound: those of Options.Addresses in their order, then those of TLSAddresses.
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

// Serve accepts connections until ctx ends, and answers with Connection: close from then on. It returns when all
// connections have ended, or were cut. Listen comes first. A Gateway serves once.
//
// Without Options.Listen the listeners are closed when ctx ends, and what is left after DrainTime is cut. With it, a
// successor inherits the sockets and the connections that wait in their queue, but maybe not before this gateway has
// returned. So as long as connections from before go on, new ones are accepted and served; see outlast. Serve then takes
// up to twice DrainTime.
func (g *Gateway) Serve(ctx context.Context) error {
	background := context.WithoutCancel(ctx)
	watching, stopWatching := context.WithCancel(background)
	var watcher, connections sync.WaitGroup
	watcher.Go(func() { g.watch(watching) })
	stopAccepting := func() {}
	if g.hold(ctx); ctx.Err() == nil {
		stopAccepting = g.startAccepting(background, &connections)
	}
	<-ctx.Done()
	g.draining.Store(true)
	cut := 0
	if g.opt.Listen != nil {
		cut = g.outlast()
	}
	g.closed.Store(true)
	g.mu.Lock()
	g.closeListeners()
	g.mu.Unlock()
	stopAccepting()
	cut += g.drain()
	connections.Wait()
	stopWatching()
	watcher.Wait()
	for _, p := range g.state.Load().pools {
		p.close()
	}
	g.log.InfoContext(ctx, "http drained", "cut", cut)
	return nil
}

// hold waits for the first Reconcile for as long as Options.Hold allows.
func (g *Gateway) hold(ctx context.Context) {
	if g.opt.Hold <= 0 {
		return
	}
	timeout := time.NewTimer(g.opt.Hold)
	defer timeout.Stop()
	select {
	case <-ctx.Done():
	case <-timeout.C:
	case <-g.reconciled:
	}
}

// startAccepting has each listener's connections served in goroutines that connections counts. The function that it
// returns waits until that has ended, which the listeners have to be closed for.
func (g *Gateway) startAccepting(ctx context.Context, connections *sync.WaitGroup) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var acceptors sync.WaitGroup
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.listeners {
		acceptors.Go(func() { g.accept(ctx, l, connections) })
	}
	return func() {
		cancel()
		acceptors.Wait()
	}
}

// accept serves each connection of the listener in a goroutine of its own, until the listener is closed.
func (g *Gateway) accept(ctx context.Context, l listener, connections *sync.WaitGroup) {
	const (
		pause     = 50 * time.Millisecond // after an error such as "too many open files", which passes
		warnEvery = 10 * time.Second
	)
	var warned time.Time
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			c := g.newConn(nc, l.config)
			connections.Go(func() { g.serveConn(c) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			g.metrics.acceptErrors.Inc()
			if time.Since(warned) > warnEvery {
				warned = time.Now()
				g.log.WarnContext(ctx, "accept failed", "address", l.Addr().String(), "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// serveConn serves a connection to its end.
func (g *Gateway) serveConn(c *conn) {
	defer c.rescue()
	if c.tls != nil && !g.handshake(c) {
		c.Close()
		return
	}
	if err := g.server.ServeConn(c); err != nil {
		g.log.Debug("connection ended", "peer", c.peer.String(), "err", err)
	}
	if !c.hijacked {
		return
	}
	if rest := <-c.rest; rest != nil {
		rest()
	}
	c.Close()
}

// rescue, deferred, ends a connection whose goroutine panicked outside of a request's handler: one client must not take
// the others down.
func (c *conn) rescue() {
	p := recover()
	if p == nil {
		return
	}
	c.g.log.Error("connection panicked", "panic", p, "stack", string(debug.Stack()))
	c.mu.Lock()
	c.cut()
	c.mu.Unlock()
	c.Close()
}
