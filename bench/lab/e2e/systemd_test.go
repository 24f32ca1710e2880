package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bench/lab/cluster"
)

// A serviceManager does for sallyport what systemd does for a unit with FileDescriptorStoreMax=: it keeps the sockets that
// one process leaves with it and hands them to the next. (bench/package has the real one.)
type serviceManager struct {
	socket *net.UnixConn
	path   string
	done   chan struct{}

	mu    sync.Mutex
	names []string
	files []*os.File
	ready int // how often READY=1 came
}

func newServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	m := &serviceManager{path: filepath.Join(t.TempDir(), "notify"), done: make(chan struct{})}
	var err error
	if m.socket, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	go m.receive()
	t.Cleanup(func() {
		_ = m.socket.Close()
		<-m.done
		for _, f := range m.files {
			_ = f.Close()
		}
	})
	return m
}

func (m *serviceManager) receive() {
	defer close(m.done)
	data, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, rn, _, _, err := m.socket.ReadMsgUnix(data, rights)
		if err != nil {
			return
		}
		m.take(string(data[:n]), rights[:rn])
	}
}

func (m *serviceManager) take(message string, rights []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if strings.Contains(message, "READY=1") {
		m.ready++
	}
	_, name, stored := strings.Cut(message, "FDSTORE=1\nFDNAME=")
	controls, err := unix.ParseSocketControlMessage(rights)
	if !stored || err != nil || len(controls) != 1 {
		return
	}
	fds, err := unix.ParseUnixRights(&controls[0])
	if err != nil {
		return
	}
	for _, fd := range fds {
		m.names = append(m.names, name)
		m.files = append(m.files, os.NewFile(uintptr(fd), name))
	}
}

// start runs sallyport on edge-3 with what is kept.
func (m *serviceManager) start(t *testing.T, s *site, config string) *edge {
	t.Helper()
	dir := filepath.Join(s.Dir(), "e2e-edge-3")
	e := &edge{host: s.Host("edge-3"), dir: dir, done: make(chan error, 1)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, e.file("sallyport.yaml"), s.config("edge-3", config))
	log, err := os.OpenFile(e.file("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// The shell is there to set LISTEN_PID, and becomes sallyport.
	e.cmd = e.host.Command(context.Background(), "sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh",
		program, "run", "--config", e.file("sallyport.yaml"), "--kubeconfig", s.kubeconfig)
	m.mu.Lock()
	e.cmd.Env = append(e.cmd.Env, "NOTIFY_SOCKET="+m.path, fmt.Sprintf("LISTEN_FDS=%d", len(m.files)), "LISTEN_FDNAMES="+strings.Join(m.names, ":"))
	e.cmd.ExtraFiles = m.files
	m.mu.Unlock()
	e.cmd.Stderr = log
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { e.done <- e.cmd.Wait() }()
	return e
}

// started waits for the n-th READY=1.
func (m *serviceManager) started(t *testing.T, e *edge, n int) {
	t.Helper()
	if err := within(20*time.Second, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.ready < n {
			return fmt.Errorf("ready %d times, want %d", m.ready, n)
		}
		return nil
	}); err != nil {
		t.Fatalf("%v\n%s", err, tail(e.log(), 30))
	}
}

// kill ends sallyport without a warning.
func (e *edge) kill() error {
	err := e.cmd.Process.Signal(syscall.SIGKILL)
	<-e.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// TestRestartUnderLoad restarts sallyport as "systemctl restart" does, and kills it once, while clients connect and request.
func TestRestartUnderLoad(t *testing.T) {
	s := theSite(t)
	a := newAuthority(t)
	ns := s.secureApp(t, a, "restart.example.com")
	s.Apply(t, ns, app("plain")+strings.NewReplacer("shop.example.com", "plain.example.com", "name: shop", "name: plain", "name: front", "name: plain",
		"*.api.example.com", "*.plain.example.com").Replace(shopIngress))
	s.Apply(t, ns, steadyService(30087))
	s.WaitReady(t, ns, "plain", 3)
	m := newServiceManager(t)
	e := m.start(t, s, "")
	t.Cleanup(func() { s.endEdge3(t, e) })
	m.started(t, e, 1)
	cluster.Eventually(t, 10*time.Second, func() error {
		got, _ := s.getTLS(e, "one.restart.example.com", a.pool())
		return errors.Join(got.err, get(s.client(), e.url(80), "plain.example.com").err)
	})
	old := s.longConnection(t, e, 30087)
	l := s.load(t, e, target{host: "plain.example.com"}, target{host: "one.restart.example.com", roots: a.pool()})
	for i := range 3 {
		if err := e.stop(); err != nil {
			t.Fatal(err)
		}
		old.stillAnswers(t)
		e = m.start(t, s, "")
		m.started(t, e, 2+i)
		old.stillAnswers(t)
	}
	l.stop(t, 300)
	if err := e.kill(); err != nil { // what L7 had in flight is lost; listeners and L4 are not
		t.Fatal(err)
	}
	old.stillAnswers(t)
	c, err := s.client().DialContext(t.Context(), "tcp", e.host.Addr.String()+":80")
	if err != nil {
		t.Fatalf("after kill -9 nobody listens: %v", err)
	}
	defer c.Close()
	e = m.start(t, s, "")
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: plain.example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 12)
	if _, err := c.Read(answer); err != nil || string(answer) != "HTTP/1.1 200" {
		t.Errorf("a client that came between kill -9 and the next start: %q %v", answer, err)
	}
	old.stillAnswers(t)
}

// endEdge3 stops what runs on edge-3 and removes all of it.
func (s *site) endEdge3(t *testing.T, e *edge) {
	if err := e.stop(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("log of edge-3:\n%s", tail(e.log(), 60))
	}
	if out, err := e.cleanup(context.Background()); err != nil {
		t.Errorf("cleanup: %v: %s", err, out)
	}
}

// steadyService is at a node port what the connections lead to that outlive restarts.
func steadyService(nodePort int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: steady}
spec: {type: NodePort, selector: {app: plain}, ports: [{port: 80, targetPort: 9376, nodePort: %d}]}
---
`, nodePort)
}

// A flow is one L4 connection through the edge, kept open.
type flow struct {
	net.Conn
	reader *bufio.Reader
}

func (s *site) longConnection(t *testing.T, e *edge, port uint16) *flow {
	t.Helper()
	f := new(flow)
	cluster.Eventually(t, 10*time.Second, func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.Conn, err = s.client().DialContext(ctx, "tcp", netip.AddrPortFrom(e.host.Addr, port).String())
		return err
	})
	t.Cleanup(func() { _ = f.Close() })
	f.reader = bufio.NewReader(f)
	f.stillAnswers(t)
	return f
}

// stillAnswers sends one more request over the connection.
func (f *flow) stillAnswers(t *testing.T) {
	t.Helper()
	if err := f.request(); err != nil {
		t.Errorf("the connection that was open before is broken: %v", err)
	}
}

func (f *flow) request() error {
	if err := f.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprint(f, "GET / HTTP/1.1\r\nHost: steady\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(f.reader, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
