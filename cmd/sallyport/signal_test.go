package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestASecondSignalEndsTheProcess has a request under way that keeps the drain waiting: whoever signals again means now.
func TestASecondSignalEndsTheProcess(t *testing.T) {
	for range 10 {
		if signalTwice(t) {
			return
		}
	}
	t.Error("no drain waited for the request that was under way")
}

// signalTwice is false if the drain found the connection before the server found the request on it: between two requests,
// a connection is closed at once.
func signalTwice(t *testing.T) (waited bool) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	config := write(t, "sallyport.yaml", "l7: {addresses: [127.0.7.2], httpPort: 8080, drainTime: 10m}\nl4: {dataplane: userspace}\nedge: {admin: {address: '127.0.7.2:9440', socket: ''}}\n")
	cmd := program(ctx, "run", "--config", config, "--manifests", t.TempDir())
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() && !strings.Contains(lines.Text(), "first snapshot applied") {
	}
	c, r := halfRequest(t)
	defer func() { _ = c.Close() }()
	begun := time.Now()
	terminate(t, cmd.Process)
	for stop := time.Now().Add(10 * time.Second); listens("127.0.7.2:8080") && time.Now().Before(stop); {
	}
	if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err == nil { // the end, where a connection that is waited for is silent
		_ = cmd.Wait()
		return false
	}
	terminate(t, cmd.Process)
	err = cmd.Wait()
	if took := time.Since(begun); took > 20*time.Second || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended after %v by %v, want by the second SIGTERM", took, err)
	}
	return true
}

// halfRequest is answered once, and is half way through its second request.
func halfRequest(t *testing.T) (net.Conn, *bufio.Reader) {
	c, err := net.Dial("tcp", "127.0.7.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / "); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c, r
}

func terminate(t *testing.T, p *os.Process) {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// listens says whether a connection to the address is taken. The drain begins by closing the listener.
func listens(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	return c.Close() == nil
}
