package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// A Client asks the running edge on this machine.
type Client struct {
	Socket string // path of its unix socket
}

// Get asks for a view, such as "/v1/status", and decodes its JSON into v.
func (c Client) Get(ctx context.Context, path string, query url.Values, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The host is for the form's sake: the connection always leads to the socket.
	target := (&url.URL{Scheme: "http", Host: "sallyport", Path: path, RawQuery: query.Encode()}).String()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.Socket)
	}}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return c.explain(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return errors.Join(errors.New(strings.TrimSpace(string(text))), err)
	}
	if err := json.NewDecoder(response.Body).Decode(v); err != nil {
		return fmt.Errorf("read the answer of the edge: %w", err)
	}
	return nil
}

// explain says what to do when nobody answers at the socket.
func (c Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no edge runs on this machine with its socket at %s: start one (sallyport run), or name its socket by --socket", c.Socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is open to root, and to the edge's user and group: use sudo", c.Socket)
	default:
		return fmt.Errorf("ask the edge at %s: %w", c.Socket, err)
	}
}
