package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// A target is a host that a load requests; with roots by TLS.
type target struct {
	host  string
	roots *x509.CertPool
}

// A load requests targets over and over, until it is stopped. It is stricter than a browser: nothing is tried again.
type load struct {
	cancel   context.CancelFunc
	done     sync.WaitGroup
	mu       sync.Mutex
	requests int
	dials    int
	slowest  time.Duration
	failures []error
}

// load has two clients for each target: one opens a connection for each request, one keeps it until told otherwise.
func (s *site) load(t *testing.T, e *edge, targets ...target) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	t.Cleanup(func() { cancel(); l.done.Wait() })
	for _, at := range targets {
		for _, keep := range []bool{true, false} {
			l.done.Go(func() {
				c := &loadClient{load: l, site: s, edge: e, target: at, keep: keep}
				for ctx.Err() == nil {
					c.request()
				}
				c.hangUp()
			})
		}
	}
	return l
}

// stop ends the load, which must have made so many requests without a failure.
func (l *load) stop(t *testing.T, atLeast int) {
	t.Helper()
	_ = within(time.Minute, func() error { // on a busy machine it takes its time
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.requests < atLeast {
			return errors.New("too few")
		}
		return nil
	})
	l.cancel()
	l.done.Wait()
	t.Logf("%d requests over %d connections, the slowest in %v, %d failed", l.requests, l.dials, l.slowest.Round(time.Millisecond), len(l.failures))
	for _, err := range l.failures[:min(5, len(l.failures))] {
		t.Errorf("failed under load: %v", err)
	}
	if l.requests < atLeast {
		t.Errorf("%d requests are no load, want %d", l.requests, atLeast)
	}
}

type loadClient struct {
	*load
	site   *site
	edge   *edge
	target target
	keep   bool
	conn   net.Conn
	reader *bufio.Reader
}

func (c *loadClient) request() {
	begun := time.Now()
	err := c.exchange()
	took := time.Since(begun)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	c.slowest = max(c.slowest, took)
	if err != nil {
		c.failures = append(c.failures, fmt.Errorf("%s, keep-alive %v, after %v: %w", c.target.host, c.keep, took.Round(time.Millisecond), err))
	}
	if err != nil || !c.keep {
		c.hangUp()
	}
}

// exchange sends one request and reads its answer.
func (c *loadClient) exchange() error {
	if c.conn == nil {
		if err := c.dial(); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(c.conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", c.target.host); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	if resp.Close {
		c.hangUp()
	}
	return nil
}

const loadTimeout = 15 * time.Second

func (c *loadClient) dial() error {
	port := uint16(80)
	if c.target.roots != nil {
		port = 443
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	conn, err := c.site.client().DialContext(ctx, "tcp", netip.AddrPortFrom(c.edge.host.Addr, port).String())
	if err != nil {
		return err
	}
	if c.target.roots != nil {
		conn = tls.Client(conn, &tls.Config{ServerName: c.target.host, RootCAs: c.target.roots})
	}
	c.conn, c.reader = conn, bufio.NewReader(conn)
	c.mu.Lock()
	c.dials++
	c.mu.Unlock()
	return conn.SetDeadline(time.Now().Add(10 * time.Minute)) // the test's own limit ends it before
}

func (c *loadClient) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close() // without close_notify or not: the answer has been read
		c.conn = nil
	}
}
