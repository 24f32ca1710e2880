// Package badhttp is an HTTP/1.1 server that answers wrongly, each path in a way of its own: what a proxy must survive
// without handing half an answer on as a whole one, or one client's answer to another.
//
// It writes its answers byte by byte to the connection, because no HTTP library would.
package badhttp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

const (
	// maxDelay bounds every pause, so that no connection stays for ever.
	maxDelay = time.Minute
	// idleTimeout is how long a connection may wait for its next request.
	idleTimeout = 2 * time.Minute
	// maxSize bounds a body, and headers without end; in bytes.
	maxSize = 64 << 20
)

// A Server serves broken HTTP.
type Server struct {
	// Only is the path whose behaviour every request gets, whatever its own path; empty for each its own.
	Only string
	// Log takes each request, and how connections end that do not end as their behaviour wants.
	Log *slog.Logger

	mu     sync.Mutex
	counts map[string]int // requests by path
}

// Serve answers on listener until ctx ends, and returns when no connection is left. It closes listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	if s.Only != "" && find(s.Only) == nil {
		listener.Close()
		return fmt.Errorf("no behaviour has the path %q", s.Only)
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		connections.Go(func() {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.serve(ctx, conn.(*net.TCPConn))
		})
	}
}

// serve answers the requests of one connection.
func (s *Server) serve(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		if conn.SetReadDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		request, err := http.ReadRequest(in)
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				s.Log.Info("read request", "peer", conn.RemoteAddr(), "err", err)
			}
			return
		}
		s.Log.Info("request", "method", request.Method, "uri", request.RequestURI, "peer", conn.RemoteAddr())
		e := &exchange{ctx: ctx, server: s, conn: conn, in: in, request: request, query: request.URL.Query()}
		switch err := s.behaviour(request).run(e); {
		case err == nil:
			continue
		case errors.Is(err, errReset):
			_ = conn.SetLinger(0) // Close then sends RST; a connection that is gone needs none
		case !errors.Is(err, errClose):
			s.Log.Info("answer request", "path", request.URL.Path, "peer", conn.RemoteAddr(), "err", err)
		}
		return
	}
}

// behaviour counts the request and returns what answers it.
func (s *Server) behaviour(r *http.Request) *behaviour {
	s.mu.Lock()
	if s.counts == nil {
		s.counts = map[string]int{}
	}
	s.counts[r.URL.Path]++
	s.mu.Unlock()
	path := r.URL.Path
	if s.Only != "" {
		path = s.Only
	}
	if b := find(path); b != nil {
		return b
	}
	return &unknown
}

// count returns how many requests for path have come.
func (s *Server) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[path]
}

// How a behaviour wants its connection to end, instead of taking another request.
var (
	errClose = errors.New("close the connection")
	errReset = errors.New("reset the connection")
)

// An exchange is one request and what may be written for it.
type exchange struct {
	ctx     context.Context
	server  *Server
	conn    *net.TCPConn
	in      *bufio.Reader
	request *http.Request
	query   url.Values
}

// write sends text as it is, at once.
func (e *exchange) write(text string) error {
	_, err := io.WriteString(e.conn, text)
	return err
}

// readBody takes the request's body, and asks for it if the client waits to be asked.
func (e *exchange) readBody() error {
	if e.request.Header.Get("Expect") == "100-continue" {
		if err := e.write("HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return err
		}
	}
	return e.drain()
}

// drain takes the request's body.
func (e *exchange) drain() error {
	_, err := io.Copy(io.Discard, e.request.Body)
	return err
}

// delay is the pause that the query asks for, in the form of time.ParseDuration.
func (e *exchange) delay(otherwise time.Duration) time.Duration {
	d, err := time.ParseDuration(e.query.Get("delay"))
	if err != nil {
		d = otherwise
	}
	return min(d, maxDelay)
}

// size is how long a body the query asks for.
func (e *exchange) size() int {
	n, err := strconv.Atoi(e.query.Get("size"))
	if err != nil || n < 0 {
		n = 1000
	}
	return min(n, maxSize)
}

// pause waits; it fails when the server ends or the client goes away meanwhile.
func (e *exchange) pause(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	if err := e.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	_, err := e.in.Peek(e.in.Buffered() + 1)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return e.conn.SetReadDeadline(time.Now().Add(idleTimeout))
	}
	if err == nil { // the next request is there already: wait all the same
		return sleep(e.ctx, d)
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
