package status

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
)

func addrs(list ...string) []netip.Addr {
	var ips []netip.Addr
	for _, a := range list {
		ips = append(ips, netip.MustParseAddr(a))
	}
	return ips
}

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// run runs w until stop is called, or the test ends.
func run(t *testing.T, w *Writer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}
