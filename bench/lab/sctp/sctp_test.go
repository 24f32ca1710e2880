package sctp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

func TestMarshalAndParse(t *testing.T) {
	for _, want := range []packet{
		{source: 1000, destination: 9999, chunk: chunkInit, initiate: 0x01020304},
		{source: 9999, destination: 1000, tag: 7, chunk: chunkInitAck, initiate: 8, cookie: "pod-1"},
		{source: 9999, destination: 1000, tag: 7, chunk: chunkAbort},
	} {
		b := want.marshal()
		if len(b)%4 != 0 {
			t.Errorf("%+v: %d bytes are not padded to a multiple of 4", want, len(b))
		}
		got, err := parse(b)
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		b[0] ^= 1
		if _, err := parse(b); !errors.Is(err, errChecksum) {
			t.Errorf("a packet with a flipped bit: %v, want %v", err, errChecksum)
		}
	}
}

func TestParseRefusesWhatIsCut(t *testing.T) {
	whole := packet{chunk: chunkInitAck, cookie: "pod-1"}.marshal()
	for n := range whole {
		if _, err := parse(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are understood", n, len(whole))
		}
	}
}

func TestInitIsAnswered(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("SALLYPORT_LAB") != "required" {
		t.Skip("raw sockets need root")
	}
	server, err := Listen(9999, "pod-1", slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server.Serve(ctx) }()
	for _, addr := range []string{"127.0.0.1", "::1"} {
		conn, err := Dial(netip.MustParseAddr(addr))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, tt := range []struct {
			port   uint16
			cookie string
			err    error
		}{{9999, "pod-1", nil}, {9998, "", ErrAborted}} {
			if cookie, err := initWithin(conn, tt.port); cookie != tt.cookie || !errors.Is(err, tt.err) {
				t.Errorf("%s port %d: got %q, %v, want %q, %v", addr, tt.port, cookie, err, tt.cookie, tt.err)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func initWithin(conn *net.IPConn, port uint16) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return Init(ctx, conn, 1000, port)
}
