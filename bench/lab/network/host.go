package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// LabVariable is the environment variable that every process of a lab carries with the lab's name as its value. What
// is left of a lab after a crash is found by it.
const LabVariable = "SALLYPORT_LAB_NAME"

// enter is run by sh inside a host's namespaces, with the host's folder and name before the command: it gives the host
// its own /run, where among others the lock of iptables lies, and its name, and becomes the command.
const enter = `mount --bind "$1" /run && hostname "$2" && shift 2 && exec "$@"`

// A Host is one machine of the lab: a network namespace, with a /run and a host name of its own for what runs there.
type Host struct {
	// Name is client, router, control, edge-1, node-1 and so on.
	Name string `json:"name"`
	// Addr and Addr6 are the host's main addresses: those in the clients' network, for nodes and control those in the
	// nodes' network.
	Addr  netip.Addr `json:"addr"`
	Addr6 netip.Addr `json:"addr6"`
	// NodesAddr and NodesAddr6 are the host's addresses in the nodes' network; the zero Addr for client and router.
	NodesAddr  netip.Addr `json:"nodesAddr,omitzero"`
	NodesAddr6 netip.Addr `json:"nodesAddr6,omitzero"`

	// Lab is the name of the lab that the host belongs to.
	Lab string `json:"lab"`
	// Folder becomes the host's /run; it lies outside the real one.
	Folder string `json:"folder"`
	// Env is added to the environment of the host's commands.
	Env []string `json:"env,omitempty"`
}

// NetNS returns the name of h's network namespace, as ip netns lists it.
func (h *Host) NetNS() string { return Prefix(h.Lab) + h.Name }

// Prefix is what the names of all network namespaces of a lab begin with, those of its pods included.
func Prefix(lab string) string { return "sp." + lab + "." }

// argv is the command line that enters h and becomes name with args, with one process identity from start to end.
func (h *Host) argv(name string, args []string) []string {
	chain := []string{"ip", "netns", "exec", h.NetNS(), "unshare", "--uts", "sh", "-c", enter, "lab", h.Folder, h.Name, name}
	return append(chain, args...)
}

// environ is the environment of h's commands: this process's, h.Env, and the mark of the lab.
func (h *Host) environ() []string {
	return append(append(os.Environ(), h.Env...), LabVariable+"="+h.Lab)
}

// Command prepares name with args to run on h, in a process group of its own. When ctx ends, the whole group is killed.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := h.argv(name, args)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = h.environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a grandchild in a group of its own may hold the output open
	return cmd
}

// Exec replaces this process by name with args on h. It returns only if that fails.
func (h *Host) Exec(name string, args ...string) error {
	if _, err := os.Stat(filepath.Join(NamespaceFolder, h.NetNS())); err != nil {
		return fmt.Errorf("enter host %s of lab %s: %w", h.Name, h.Lab, err)
	}
	argv := h.argv(name, args)
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, h.environ())
}

// Do runs fn on a thread that has entered h's network namespace. Sockets that fn opens stay in that namespace wherever
// they are used later; goroutines that it starts are not in it. fn must not end its goroutine, as t.Fatal does.
func (h *Host) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("BUG: the function ended its goroutine")
		defer func() { done <- err }()
		err = inNamespace(h.NetNS(), fn)
	}()
	return <-done
}

// inNamespace runs fn with the calling goroutine's thread in the named network namespace. If the thread cannot be
// brought back it stays locked, and so ends with the goroutine.
func inNamespace(name string, fn func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("read own network namespace: %w", err)
	}
	defer home.Close()
	there, err := netns.GetFromName(name)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	err = fn()
	if back := netns.Set(home); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", name, back))
	}
	runtime.UnlockOSThread()
	return err
}

// DialContext dials from h. The host in address must be an IP literal: there is no DNS in the lab, and net.Dialer
// would look names up from another thread, outside h.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %s from %s: the lab has no DNS: %w", address, h.Name, err)
	}
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// HTTPClient returns a client whose requests leave from h, each over a connection of its own. It follows no redirect
// and gives up after 10 s. Its transport is an *http.Transport, for tests that need it otherwise.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       10 * time.Second,
	}
}
