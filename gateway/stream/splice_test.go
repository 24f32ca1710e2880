package stream

import (
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// openPipes counts the ends of pipes that this process has.
func openPipes(t *testing.T) (n int) {
	t.Helper()
	const folder = "/proc/self/fd/"
	list, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if to, err := os.Readlink(folder + fd.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// A connection that is open costs its two sockets; pipes are those of the ones whose data moves.
func TestIdleConnectionsHoldNoPipes(t *testing.T) {
	const connections = 4 * freePipes
	before := openPipes(t)
	pipes := newPipes()
	var clients []*net.TCPConn
	var moves sync.WaitGroup
	for range connections {
		client, r, endpoint := aRelay(t)
		clients = append(clients, client)
		moves.Go(func() { pipes.move(r.backend, r.client) })
		io.WriteString(client, "!")
		if _, err := io.ReadFull(endpoint, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "pipes are given back", func() bool { return openPipes(t)-before <= 2*freePipes })
	for _, c := range clients {
		c.Close()
	}
	moves.Wait()
	pipes.close()
	eventually(t, "no pipe is left", func() bool { return openPipes(t) <= before })
}

// What was on its way to a client that is gone must not come out at another one.
func TestPipesAreGivenBackEmpty(t *testing.T) {
	pipes := newPipes()
	defer pipes.close()
	client, r, endpoint := aRelay(t)
	var moves sync.WaitGroup
	moves.Go(func() {
		if _, err := pipes.move(r.backend, r.client); err == nil {
			t.Error("data for an endpoint that is gone was moved")
		}
		r.reset()
	})
	moves.Go(func() { writeZeros(client, 64<<20) }) // more than sockets hold, until the reset
	awaitData(t, r.client, 1<<20)                   // the endpoint's side is full
	reset(endpoint)
	moves.Wait()
	for len(pipes.free) > 0 {
		p, err := pipes.get()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := unix.IoctlGetInt(p.r, unix.TIOCINQ); err != nil || n != 0 {
			t.Errorf("a free pipe holds %d bytes, %v", n, err)
		}
		p.close()
	}
}

// Without pipes to be had, data is copied.
func TestMoveWithoutSplice(t *testing.T) {
	client, r, endpoint := aRelay(t)
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	broken := newPipes()
	defer broken.close()
	broken.free <- pipe{-1, null} // no pipe: splice(2) says EINVAL
	var moved int64
	var moves sync.WaitGroup
	moves.Go(func() { moved, err = broken.move(r.backend, r.client) })
	io.WriteString(client, "hello")
	client.CloseWrite()
	moves.Wait()
	r.backend.CloseWrite()
	if got, _ := io.ReadAll(endpoint); err != nil || moved != 5 || string(got) != "hello" {
		t.Errorf("moved %d, %v: %q arrived", moved, err, got)
	}
}
