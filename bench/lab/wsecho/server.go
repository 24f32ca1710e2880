// Package wsecho is a server for tests of upgraded connections: it sends every WebSocket message back, and says its host
// name to everybody else.
package wsecho

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"
)

const (
	// maxMessage bounds a message, in bytes.
	maxMessage = 16 << 20
	// headerTimeout is how long a client may take for its request.
	headerTimeout = 10 * time.Second
)

// Command is the program that serves: the image websocket of the lab.
func Command() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "websocket",
		Short: "Send back each WebSocket message at /ws, and say the host name elsewhere",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			listener, err := net.Listen("tcp", address)
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			return Serve(cmd.Context(), listener, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
	cmd.Flags().StringVar(&address, "listen", ":8080", "`HOST:PORT` to serve on")
	return cmd
}

// Serve answers on listener until ctx ends, and returns when no connection is left. /ws is the echo, with the client's
// first subprotocol and the message types kept; every other path says the host name.
func Serve(ctx context.Context, listener net.Listener, log *slog.Logger) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	var echoing sync.RWMutex // held for reading by each echo, of which the server knows nothing once it is upgraded
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		echoing.RLock()
		defer echoing.RUnlock()
		if err := echo(w, r, host); err != nil && ctx.Err() == nil {
			log.Info("connection ended", "peer", r.RemoteAddr, "err", err)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, host) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout, BaseContext: func(net.Listener) context.Context { return ctx }}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	err = server.Serve(listener)
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	echoing.Lock()
	defer echoing.Unlock()
	return nil
}

// echo sends messages back until the connection ends. The answer's header names the host that has it.
func echo(w http.ResponseWriter, r *http.Request, host string) error {
	w.Header().Set("X-Hostname", host)
	options := &websocket.AcceptOptions{InsecureSkipVerify: true} // pages of any origin may use it
	if first, _, _ := strings.Cut(r.Header.Get("Sec-WebSocket-Protocol"), ","); first != "" {
		options.Subprotocols = []string{strings.TrimSpace(first)}
	}
	conn, err := websocket.Accept(w, r, options)
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseNow() }() // fails if it is closed already
	conn.SetReadLimit(maxMessage)
	for {
		kind, message, err := conn.Read(r.Context())
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read message: %w", err)
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return fmt.Errorf("send message back: %w", err)
		}
	}
}
