package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"sallyport/bench/lab/cluster"
)

// An answer is what one HTTP request came to.
type answer struct {
	code int
	body string
	err  error
}

// get requests url from the host, over a connection of its own, naming hostHeader if there is one. It gives up after a
// second: a connection whose first packet came before the address stays lost, the next one does not.
func get(from *cluster.Host, url, hostHeader string) answer {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return getWithin(ctx, from, url, hostHeader)
}

func getWithin(ctx context.Context, from *cluster.Host, url, hostHeader string) answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{err: err}
	}
	req.Host = hostHeader
	resp, err := from.HTTPClient().Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(body), err}
}

// nameWithin bounds one request for a name. It is less than TCP's first repetition (1 s), which would come to the same pod
// that has just gone: a new connection is what follows the change.
const nameWithin = 300 * time.Millisecond

// names asks url tries times and returns the different bodies, which are pods' names. Any failure is an error.
func names(from *cluster.Host, url string, tries int) (map[string]bool, error) {
	out := map[string]bool{}
	for i := range tries {
		ctx, cancel := context.WithTimeout(context.Background(), nameWithin)
		a := getWithin(ctx, from, url, "")
		cancel()
		if a.err != nil || a.code != http.StatusOK {
			return out, fmt.Errorf("try %d of %s: code %d, %v", i+1, url, a.code, a.err)
		}
		out[strings.TrimSpace(a.body)] = true
	}
	return out, nil
}

// wantNames is nil when url is answered by exactly n pods in 60 tries.
func wantNames(from *cluster.Host, url string, n int) error {
	got, err := names(from, url, 60)
	if err == nil && len(got) != n {
		err = fmt.Errorf("%s is answered by %d pods, want %d: %v", url, len(got), n, got)
	}
	return err
}

// dial opens a TCP connection and closes it.
func dial(from *cluster.Host, addr netip.Addr, port uint16) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return err
	}
	return c.Close()
}

// ask sends one datagram and returns the answer.
func ask(from *cluster.Host, addr netip.Addr, port uint16, message string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := from.DialContext(ctx, "udp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c, message)
}

func exchange(c net.Conn, message string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(message)); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}
