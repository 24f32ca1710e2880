package stream

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// processIO returns how many bytes this process has read and written by read(2), write(2) and the like. What is spliced is in
// neither.
func processIO(t *testing.T) (read, written int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "rchar: %d", &read)
		fmt.Sscanf(line, "wchar: %d", &written)
	}
	if read == 0 {
		t.Fatalf("no rchar in /proc/self/io: %q", text)
	}
	return read, written
}

// The bytes of a connection stay in the kernel: that the client writes them and the destination reads them is all of them that
// this process sees, though it relays them both ways.
func TestTCPIsSpliced(t *testing.T) {
	const size = 64 << 20
	for _, version := range []uint8{0, 2} {
		svc := service("web", model.TCP, 30001, tcpServer(t, func(c *net.TCPConn) {
			n, _ := io.Copy(io.Discard, c)
			fmt.Fprintf(c, "%d\n", n>>20)
		}))
		svc.ProxyProtocol = version
		e := newEdge(t, Options{})
		e.mustReconcile(t, svc)
		c := dial(t, e.at(30001))
		readBefore, writtenBefore := processIO(t)
		if err := writeZeros(c.TCPConn, size); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		c.mustLine(t, fmt.Sprint(size>>20))
		read, written := processIO(t)
		read, written = read-readBefore, written-writtenBefore
		if limit := int64(size + size/4); read > limit || written > limit {
			t.Errorf("PROXY version %d: read %d and wrote %d MiB to relay %d MiB: the relay copies", version, read>>20, written>>20, size>>20)
		}
	}
}

func writeZeros(w io.Writer, size int) error {
	chunk := make([]byte, 1<<20)
	for left := size; left > 0; left -= len(chunk) {
		if _, err := w.Write(chunk[:min(left, len(chunk))]); err != nil {
			return err
		}
	}
	return nil
}

// A reset by the client reaches the endpoint as one, also while no data flows.
func TestTCPPassesOnTheClientsReset(t *testing.T) {
	ended := make(chan error, 1)
	e := newEdge(t, Options{})
	e.mustReconcile(t, service("web", model.TCP, 30001, tcpServer(t, func(c *net.TCPConn) {
		io.WriteString(c, "hello\n")
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})))
	c := dial(t, e.at(30001))
	c.line(t)
	reset(c.TCPConn)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), unix.ECONNRESET.Error()) {
		t.Errorf("the endpoint sees %v, want a reset", err)
	}
}

// copied hides all of a connection but Read and Write, and so takes splice away from it.
type copied struct{ io.ReadWriter }

// BenchmarkRelay moves data through one direction of a relay, by splice as pass does, and by copying as a proxy does that wraps
// its connections. CPU time is that of the relay's thread alone.
func BenchmarkRelay(b *testing.B) {
	pipes := newPipes()
	defer pipes.close()
	for _, kind := range []struct {
		name string
		pass func(r *relay)
	}{
		{"splice", func(r *relay) { r.pass(pipes, r.backend, r.client, &r.in, 0) }},
		{"package net", func(r *relay) { r.backend.ReadFrom(r.client) }},
		{"copy", func(r *relay) { io.Copy(copied{r.backend}, copied{r.client}) }},
	} {
		for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", kind.name, size>>10), func(b *testing.B) { benchmarkRelay(b, kind.pass, size) })
		}
	}
}

func benchmarkRelay(b *testing.B, pass func(*relay), size int) {
	client, r, endpoint := aRelay(b)
	for _, c := range []*net.TCPConn{client, r.client, r.backend, endpoint} {
		c.SetDeadline(time.Time{})
	}
	chunk := make([]byte, size)
	used := make(chan int64)
	go func() {
		runtime.LockOSThread() // which ends with the goroutine
		before := threadTime(b)
		pass(r)
		endpoint.Close()
		used <- threadTime(b) - before
	}()
	go io.Copy(io.Discard, copied{endpoint}) // ends with it
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	client.CloseWrite()
	b.ReportMetric(float64(<-used)/float64(b.N)/float64(size)*(1<<20)/1000, "CPU-us/MiB")
}

// threadTime returns the ns of CPU time that this thread has used.
func threadTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Error(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
