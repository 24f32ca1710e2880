package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestASecondSignalEndsTheProcess has a request under way that keeps the drain waiting: whoever signals again means now.
func TestASecondSignalEndsTheProcess(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	config := write(t, "sallyport.yaml", "l7: {addresses: [127.0.7.2], httpPort: 8080, drainTime: 10m}\nl4: {dataplane: userspace}\nedge: {admin: {address: '127.0.7.2:9440'}}\n")
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
	c, err := net.Dial("tcp", "127.0.7.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / "); err != nil { // answered, and half of the next
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		for stop := time.Now().Add(10 * time.Second); listens("127.0.7.2:8080") && time.Now().Before(stop); {
		}
	}
	err = cmd.Wait()
	if took := time.Since(begun); took > 20*time.Second || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended after %v by %v, want by the second SIGTERM", took, err)
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
