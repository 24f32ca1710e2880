package deb

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"sallyport/bench/lab/network"
)

const body = "from the pod"

// serve plays the pod: HTTP on port 8080, and on port 9000 what is sent comes back.
func serve(t *testing.T, outside *network.Host) {
	t.Helper()
	var web, echo net.Listener
	err := outside.Do(func() (err error) {
		if web, err = net.Listen("tcp", podAddress+":8080"); err != nil {
			return err
		}
		echo, err = net.Listen("tcp", podAddress+":9000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := http.Server{Handler: http.HandlerFunc(answer)}
	go func() { _ = s.Serve(web) }()
	t.Cleanup(func() { _ = errors.Join(s.Close(), echo.Close()) })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// answer sends body, for the path /slow in two halves.
func answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/slow" {
		fmt.Fprint(w, body)
		return
	}
	fmt.Fprint(w, body[:5])
	_ = http.NewResponseController(w).Flush()
	select {
	case <-time.After(300 * time.Millisecond):
		fmt.Fprint(w, body[5:])
	case <-r.Context().Done():
	}
}

// get asks once, at an address and for a host.
func get(c *http.Client, url, host string) error {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r.Host = host
	answer, err := c.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	got, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || string(got) != body) {
		err = fmt.Errorf("%s: %.100s", answer.Status, got)
	}
	return err
}

// A load is clients that ask without a pause.
type load struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu       sync.Mutex
	requests map[string]int // by kind of client
	failed   []error
	longest  time.Duration
}

// The kinds of clients.
const (
	fresh = "HTTP over new connections"
	kept  = "HTTP over kept connections"
	slow  = "HTTP with slow answers"
	safe  = "HTTPS over kept connections"
	flow  = "one connection to a NodePort"
)

// startLoad asks for web.example.com in each way, and speaks over one connection through the kernel, all from outside of the
// machine.
func startLoad(outside *network.Host) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop, requests: map[string]int{}}
	for _, client := range []struct{ kind, url string }{
		{fresh, "http://" + machineAddress + "/"},
		{fresh, "http://" + machineAddress + "/"},
		{kept, "http://" + machineAddress + "/"},
		{kept, "http://" + machineAddress + "/"},
		{slow, "http://" + machineAddress + "/slow"},
		{safe, "https://" + machineAddress + "/"},
	} {
		c := outside.HTTPClient()
		c.Timeout = 30 * time.Second
		transport := c.Transport.(*http.Transport)
		transport.DisableKeepAlives = client.kind == fresh
		transport.TLSClientConfig = &tls.Config{ServerName: "web.example.com", InsecureSkipVerify: true} // the edge has its own certificate
		l.done.Go(func() {
			l.repeat(ctx, client.kind, func() error { return get(c, client.url, "web.example.com") })
			c.CloseIdleConnections()
		})
	}
	l.done.Go(func() { l.speak(ctx, outside) })
	return l
}

// repeat calls ask until ctx ends, and counts.
func (l *load) repeat(ctx context.Context, kind string, ask func() error) {
	for ctx.Err() == nil {
		begun := time.Now()
		err := ask()
		l.mu.Lock()
		l.requests[kind]++
		l.longest = max(l.longest, time.Since(begun))
		if err != nil {
			l.failed = append(l.failed, fmt.Errorf("%s: %w", kind, err))
		}
		l.mu.Unlock()
	}
}

// speak sends lines through one connection, and reads them back.
func (l *load) speak(ctx context.Context, outside *network.Host) {
	c, err := outside.DialContext(ctx, "tcp", machineAddress+":30090")
	if err != nil {
		l.repeat(ctx, flow, func() error { l.stop(); return err })
		return
	}
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	l.repeat(ctx, flow, func() error {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c, body); err != nil {
			return err
		}
		line, err := r.ReadString('\n')
		if err == nil && line != body+"\n" {
			err = fmt.Errorf("got %q back", line)
		}
		return err
	})
}

// during runs work under load, and says what became of the requests. Those that wait for an answer get it.
func during(t *testing.T, outside *network.Host, work func()) *load {
	t.Helper()
	l := startLoad(outside)
	defer l.done.Wait()
	defer l.stop()
	more := func(than map[string]int) func() error {
		return func() error {
			for _, kind := range []string{fresh, kept, slow, safe, flow} {
				if n := l.count()[kind]; n < than[kind]+2 {
					return fmt.Errorf("%d requests: %s", n, kind)
				}
			}
			return nil
		}
	}
	until(t, "the load is under way", more(nil))
	work()
	until(t, "the load goes on", more(l.count()))
	l.stop()
	l.done.Wait()
	t.Logf("requests: %v; failed: %d; longest: %v", l.requests, len(l.failed), l.longest.Round(time.Millisecond))
	return l
}

// count is how many requests have ended so far, by kind.
func (l *load) count() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.requests)
}

// none fails the test for each request that failed, up to a few.
func (l *load) none(t *testing.T) {
	t.Helper()
	for i, err := range l.failed {
		if i == 5 {
			t.Errorf("and %d more", len(l.failed)-i)
			return
		}
		t.Error(err)
	}
}
