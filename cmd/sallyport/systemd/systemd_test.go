package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager stands in for systemd: it listens where $NOTIFY_SOCKET says.
func manager(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

// receive is the next message and the descriptors that came with it.
func receive(t *testing.T, c *net.UnixConn) (string, []int) {
	t.Helper()
	data, rights := make([]byte, 4096), make([]byte, 4096)
	n, rn, _, _, err := c.ReadMsgUnix(data, rights)
	if err != nil {
		t.Fatal(err)
	}
	if rn == 0 {
		return string(data[:n]), nil
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(data[:n]), fds
}

func TestNotify(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@sallyport-test-%d", os.Getpid())} {
		t.Run(path[:1], func(t *testing.T) {
			c := manager(t, path)
			if err := Notify(Ready + "\nSTATUS=serving"); err != nil {
				t.Fatal(err)
			}
			if got, fds := receive(t, c); got != "READY=1\nSTATUS=serving" || fds != nil {
				t.Errorf("got %q with descriptors %v", got, fds)
			}
		})
	}
}

func TestStoppingWithin(t *testing.T) {
	if got := StoppingWithin(25 * time.Second); got != "STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000" {
		t.Errorf("got %q", got)
	}
}

func TestWithoutAManagerNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := errors.Join(Notify(Ready), Forget("a"), Store("a", os.Stdin)); err != nil {
		t.Error(err)
	}
	if got := Inherited(); got != nil {
		t.Errorf("inherited %v", got)
	}
}

func TestAManagerThatHasGoneIsAnError(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	for _, err := range []error{Notify(Ready), Forget("a"), Store("a", os.Stdin)} {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	}
}

func TestStoreOfAClosedFileIsAnError(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if err := Store("tcp :80", f); err == nil || !strings.Contains(err.Error(), "tcp :80") {
		t.Errorf("got %v", err)
	}
}

// TestStoredListenersGoOnInTheNextProcess plays one restart: a listener is stored, its process closes it, a connection is made
// meanwhile, and the next process, which is this test binary again, answers it.
func TestStoredListenersGoOnInTheNextProcess(t *testing.T) {
	c := manager(t, filepath.Join(t.TempDir(), "notify"))
	const name = "tcp 127.0.0.1:0"
	addr := storeListener(t, name)
	message, fds := receive(t, c)
	variable, stored, _ := strings.Cut(message, "FDNAME=")
	if variable != "FDSTORE=1\n" || len(fds) != 1 || strings.ContainsAny(stored, ":\n") {
		t.Fatalf("got %q with descriptors %v", message, fds)
	}
	kept := os.NewFile(uintptr(fds[0]), stored)
	defer func() { _ = kept.Close() }()
	// The shell is there to set LISTEN_PID, and stays the same process.
	next := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run=TestTheNextProcess`, os.Args[0])
	next.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES="+stored, "TEST_LISTENER="+name)
	next.ExtraFiles = []*os.File{kept}
	out := make(chan string, 1)
	go func() {
		text, err := next.CombinedOutput()
		out <- fmt.Sprintf("%s%v", text, err)
	}()
	client := http.Client{Timeout: 20 * time.Second}
	r, err := client.Get("http://" + addr)
	said := <-out
	if err != nil {
		t.Fatalf("%v; the next process said: %s", err, said)
	}
	defer func() { _ = r.Body.Close() }()
	if r.StatusCode != http.StatusNoContent || !strings.HasPrefix(said, "PASS") {
		t.Errorf("got %s; the next process said: %s", r.Status, said)
	}
}

// storeListener listens, stores the listener and closes it. It still accepts after it was stored: it has not become blocking.
func storeListener(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := Store(name, f); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if err := l.(*net.TCPListener).SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("accept does not keep to its deadline: %v", err)
	}
	_ = l.Close()
	return l.Addr().String()
}

// TestTheNextProcess is the other half of the test above, and nothing by itself.
func TestTheNextProcess(t *testing.T) {
	name := os.Getenv("TEST_LISTENER")
	if name == "" {
		return
	}
	got := Inherited()
	if len(got) != 1 || len(got[name]) != 1 || os.Getenv("LISTEN_FDS") != "" {
		t.Fatalf("inherited %v, LISTEN_FDS=%s", got, os.Getenv("LISTEN_FDS"))
	}
	if flags, err := unix.FcntlInt(firstInherited, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %d, %v: programs that are started inherit the listener", flags, err)
	}
	l, err := net.FileListener(got[name][0])
	if err != nil {
		t.Fatal(err)
	}
	_ = got[name][0].Close()
	served := make(chan struct{})
	s := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		close(served)
	})}
	go func() { _ = s.Serve(l) }()
	<-served
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestInheritedIsForThisProcessOnly(t *testing.T) {
	for _, tt := range []struct{ name, pid, fds string }{
		{"nothing", "", ""},
		{"of another process", "1", "1"},
		{"no number", fmt.Sprint(os.Getpid()), "many"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("LISTEN_PID", tt.pid)
			t.Setenv("LISTEN_FDS", tt.fds)
			if got := Inherited(); got != nil {
				t.Errorf("got %v", got)
			}
			if _, set := os.LookupEnv("LISTEN_FDS"); set {
				t.Error("LISTEN_FDS is still set")
			}
		})
	}
}

func TestFilesAreNamed(t *testing.T) {
	pipe := make([]int, 2)
	if err := unix.Pipe(pipe); err != nil {
		t.Fatal(err)
	}
	first := max(pipe[0], pipe[1]) + 100
	for i := range 3 {
		if err := unix.Dup3(pipe[0], first+i, 0); err != nil {
			t.Fatal(err)
		}
	}
	got := files(first, 3, []string{escape("tcp [::1]:80"), "100%"})
	for _, name := range []string{"tcp [::1]:80", "100%", "unknown"} {
		if len(got[name]) != 1 {
			t.Errorf("no %q in %v", name, got)
			continue
		}
		_ = got[name][0].Close()
	}
}

func TestForget(t *testing.T) {
	c := manager(t, filepath.Join(t.TempDir(), "notify"))
	if err := Forget("tcp :80"); err != nil {
		t.Fatal(err)
	}
	if got, _ := receive(t, c); got != "FDSTOREREMOVE=1\nFDNAME="+escape("tcp :80") {
		t.Errorf("got %q", got)
	}
}

func TestWatchdogBeatsWhileHealthy(t *testing.T) {
	c := manager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "2000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	done := make(chan error, 1)
	go func() {
		done <- Watchdog(ctx, func(context.Context) error {
			asked++
			if asked > 2 {
				cancel()
				return errors.New("stuck")
			}
			return nil
		})
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, _ := receive(t, c); got != alive {
			t.Errorf("got %q", got)
		}
	}
	if err := c.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ReadFromUnix(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a beat while not healthy: %v", err)
	}
}

func TestWatchdogInterval(t *testing.T) {
	for _, tt := range []struct {
		name, pid, usec string
		want            time.Duration
	}{
		{"not asked for", "", "", 0},
		{"ours", fmt.Sprint(os.Getpid()), "30000000", 15 * time.Second},
		{"anyone's", "", "30000000", 15 * time.Second},
		{"another process'", "1", "30000000", 0},
		{"nonsense", "", "-1", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("WATCHDOG_PID", tt.pid)
			t.Setenv("WATCHDOG_USEC", tt.usec)
			if got := watchdogInterval(); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
