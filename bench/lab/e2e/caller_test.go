package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

// A caller is where requests come from: a host, and one of its addresses or any of them.
type caller struct {
	host  *cluster.Host
	local netip.Addr
}

func (s *site) caller() caller { return caller{host: s.client()} }

// callers gives the client n more addresses of the family of to, for the length of the test.
func (s *site) callers(t *testing.T, n int, to netip.Addr) []caller {
	t.Helper()
	first := s.client().Addr6
	if to.Is4() {
		first = s.client().Addr
	}
	var all []caller
	var addrs []netip.Addr
	b := first.AsSlice()
	b[len(b)-1] = 200 // beyond the edges
	for a, _ := netip.AddrFromSlice(b); len(all) < n; a = a.Next() {
		all, addrs = append(all, caller{s.client(), a}), append(addrs, a)
	}
	s.hold(t, s.client(), network.ClientsLink, addrs...)
	return all
}

// dial opens a connection. It gives up before TCP's first repetition (1 s): what is answered at all is answered at once.
func (c caller) dial(ctx context.Context, proto string, to netip.AddrPort) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, 800*time.Millisecond)
	defer cancel()
	d := net.Dialer{}
	switch {
	case !c.local.IsValid():
	case proto == "tcp":
		d.LocalAddr = &net.TCPAddr{IP: c.local.AsSlice()}
	default:
		d.LocalAddr = &net.UDPAddr{IP: c.local.AsSlice()}
	}
	err = c.host.Do(func() (err error) {
		conn, err = d.DialContext(ctx, proto, to.String())
		return err
	})
	return conn, err
}

// get requests a path over a connection of its own.
func (c caller) get(to netip.AddrPort, path string) (string, error) {
	client := http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.dial(ctx, "tcp", to)
		}},
	}
	resp, err := client.Get("http://" + to.String() + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// udp sends a datagram from a new port and returns the answer.
func (c caller) udp(to netip.AddrPort, message string) (string, error) {
	conn, err := c.dial(context.Background(), "udp", to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return exchange(conn, message)
}

// tries is how often a Service is asked before it is said who answers. That one of three pods is left out by chance has a
// probability of 1e-10.
const tries = 60

// wantPods is nil if a TCP service port is answered by exactly n pods.
func (c caller) wantPods(to netip.AddrPort, n int) error {
	return wantAnswerers(to, n, func() (string, error) { return c.get(to, "/hostname") })
}

// wantUDPPods is nil if a UDP service port is answered by exactly n pods.
func (c caller) wantUDPPods(to netip.AddrPort, n int) error {
	return wantAnswerers(to, n, func() (string, error) { return c.udp(to, "hostname") })
}

func wantAnswerers(to netip.AddrPort, n int, ask func() (string, error)) error {
	got := map[string]int{}
	for i := range tries {
		name, err := ask()
		if err != nil {
			return fmt.Errorf("try %d of %v: %w", i+1, to, err)
		}
		got[name]++
	}
	if len(got) != n {
		return fmt.Errorf("%v is answered by %d pods, want %d: %v", to, len(got), n, got)
	}
	return nil
}

// wantRefused is nil if a TCP connection is refused, within a second.
func (c caller) wantRefused(to netip.AddrPort) error {
	conn, err := c.dial(context.Background(), "tcp", to)
	if err == nil {
		conn.Close()
	}
	return wantError(to, err, syscall.ECONNREFUSED)
}

// wantUDPRefused is nil if a datagram is answered by ICMP port unreachable, within a second.
func (c caller) wantUDPRefused(to netip.AddrPort) error {
	_, err := c.udp(to, "hostname")
	return wantError(to, err, syscall.ECONNREFUSED)
}

// wantDropped is nil if a TCP connection gets no answer at all.
func (c caller) wantDropped(to netip.AddrPort) error {
	conn, err := c.dial(context.Background(), "tcp", to)
	if err == nil {
		conn.Close()
	}
	return wantError(to, err, os.ErrDeadlineExceeded, context.DeadlineExceeded, syscall.ETIMEDOUT)
}

func wantError(to netip.AddrPort, got error, wants ...error) error {
	for _, want := range wants {
		if errors.Is(got, want) {
			return nil
		}
	}
	if timeout := net.Error(nil); errors.As(got, &timeout) && timeout.Timeout() && len(wants) > 1 {
		return nil
	}
	return fmt.Errorf("%v: got %v, want %v", to, got, wants[0])
}

// everywhere is nil if check is for every address with the port.
func everywhere(addrs []netip.Addr, port uint16, check func(netip.AddrPort) error) error {
	var errs []error
	for _, a := range addrs {
		errs = append(errs, check(netip.AddrPortFrom(a, port)))
	}
	return errors.Join(errs...)
}

// eventuallyAt waits for each address with the port alone: a kernel sends no more than one ICMP unreachable a second to a client
// (net.ipv4.icmp_ratelimit), but for a few at once.
func eventuallyAt(t *testing.T, addrs []netip.Addr, port uint16, check func(netip.AddrPort) error) {
	t.Helper()
	for _, a := range addrs {
		cluster.Eventually(t, 20*time.Second, func() error { return check(netip.AddrPortFrom(a, port)) })
	}
}
