package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serviceManager reads what sockets send to systemd.
func serviceManager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

// said is everything that was sent so far, a line each.
func said(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	var all strings.Builder
	for data := make([]byte, 4096); ; {
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil { // datagrams on one machine are there at once
			t.Fatal(err)
		}
		n, err := c.Read(data)
		if err != nil {
			return all.String()
		}
		all.WriteString(strings.ReplaceAll(string(data[:n]), "\n", " ") + "\n")
	}
}

// fileOf gives a descriptor of a listener of the network, as systemd hands it over.
func fileOf(t *testing.T, network, address string) *os.File {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// free is an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestListenersAreInheritedOrMade has one of each kind of inheritance, and looks at what systemd is told to keep and to forget.
func TestListenersAreInheritedOrMade(t *testing.T) {
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, tt := range []struct {
		name      string
		inherited []*os.File
		want      string // to systemd
		log       string
	}{
		{"nothing", nil, "FDSTORE=1", ""},
		{"a listener", []*os.File{fileOf(t, "tcp", "127.0.0.1:0")}, "", "taken over"},
		{"two under one name", []*os.File{fileOf(t, "tcp", "127.0.0.1:0"), fileOf(t, "tcp", "127.0.0.1:0")}, "", "taken over"},
		{"no socket", []*os.File{pipe}, "FDSTOREREMOVE=1 FDSTORE=1", "not usable"},
		{"a listener of another kind", []*os.File{fileOf(t, "unix", filepath.Join(t.TempDir(), "s"))}, "FDSTOREREMOVE=1 FDSTORE=1", "which is not TCP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			manager, log := serviceManager(t), new(bytes.Buffer)
			address := free(t)
			s := &sockets{inherited: map[string][]*os.File{"tcp " + address: tt.inherited}, log: slog.New(slog.NewTextHandler(log, nil))}
			l, err := s.listen(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var sent []string
			for line := range strings.Lines(said(t, manager)) {
				sent = append(sent, strings.Fields(line)[0])
			}
			if got := strings.Join(sent, " "); got != tt.want || !strings.Contains(log.String(), tt.log) {
				t.Errorf("told systemd %q, want %q; log %q, want %q", got, tt.want, log, tt.log)
			}
			for _, f := range tt.inherited {
				if f.Close() == nil {
					t.Errorf("the inherited %s stays open beside the listener's own", f.Name())
				}
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatalf("nobody listens: %v", err)
			}
			_ = c.Close()
		})
	}
}

func TestListenersNoLongerConfiguredAreClosed(t *testing.T) {
	manager := serviceManager(t)
	f := fileOf(t, "tcp", "127.0.0.1:0")
	s := &sockets{inherited: map[string][]*os.File{"tcp :8080": {f}}, log: slog.New(slog.DiscardHandler)}
	s.forgetRest(t.Context())
	if got := said(t, manager); got != "FDSTOREREMOVE=1 FDNAME=tcp+%3A8080\n" || f.Close() == nil {
		t.Errorf("told systemd %q, or it is still open", got)
	}
}
