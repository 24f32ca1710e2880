package wsecho

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// serve starts the server on loopback for the test.
func serve(t *testing.T) (address string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := Serve(ctx, listener, slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); serving.Wait() })
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

func TestEcho(t *testing.T) {
	address, stop := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	conn, response, err := websocket.Dial(ctx, "ws://"+address+"/ws", &websocket.DialOptions{Subprotocols: []string{"chat", "other"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if got := fmt.Sprint(response.Header.Get("X-Hostname"), " ", conn.Subprotocol()); got != host+" chat" {
		t.Errorf("host and subprotocol are %q, want %q", got, host+" chat")
	}
	conn.SetReadLimit(maxMessage)
	for _, tt := range []struct {
		kind    websocket.MessageType
		message []byte
	}{
		{websocket.MessageText, []byte("hello")},
		{websocket.MessageBinary, []byte{0, 1, 2}},
		{websocket.MessageText, nil},
		{websocket.MessageBinary, bytes.Repeat([]byte("x"), 1<<20)},
	} {
		if err := conn.Write(ctx, tt.kind, tt.message); err != nil {
			t.Fatal(err)
		}
		kind, message, err := conn.Read(ctx)
		if err != nil || kind != tt.kind || !bytes.Equal(message, tt.message) {
			t.Errorf("got %v of %d bytes, %v, want %v of %d", kind, len(message), err, tt.kind, len(tt.message))
		}
	}
	stop() // with the connection open
	if _, _, err := conn.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the connection outlives its server: %v", err)
	}
}

func TestHostname(t *testing.T) {
	address, _ := serve(t)
	response, err := http.Get("http://" + address + "/any")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	host, _ := os.Hostname()
	if want := host + "\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if response, err = http.Get("http://" + address + "/ws"); err != nil || response.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("/ws without an upgrade: %v, %v, want status 426", response, err)
	}
}
