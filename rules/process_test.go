package rules

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/rules/netlab"
	"sallyport/rules/scenario"
)

// roleEnv makes the test's program a Kernel with the backend or dataplane that it names, in a process of its own.
const roleEnv = "SALLYPORT_TEST_KERNEL"

// noServices is a line for serveKernel.
const noServices = "none"

func TestMain(m *testing.M) {
	if b := os.Getenv(roleEnv); b != "" {
		if err := serveKernel(optionsOf(b), os.Stdin, os.Stdout); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// optionsOf are those with a backend, or with a dataplane.
func optionsOf(name string) Options {
	if name == string(DataplaneNFTables) {
		return Options{Dataplane: DataplaneNFTables}
	}
	return Options{Backend: Backend(name)}
}

// name is the other way round.
func (o Options) name() string { return cmp.Or(string(o.Dataplane), string(o.Backend)) }

// serveKernel reconciles a snapshot with the destinations of each line that it reads, and answers by ok or an error.
func serveKernel(o Options, in io.Reader, out io.Writer) error {
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	k, err := NewKernel(o)
	if err != nil {
		return err
	}
	defer k.Close()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	defer func() { stop(); <-ended }()
	go func() {
		defer close(ended)
		if err := k.Watch(ctx, func() {}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	for lines := bufio.NewScanner(in); lines.Scan(); {
		s := scenario.Snapshot()
		if to := lines.Text(); to != noServices {
			s = web(to)
		}
		answer := "ok"
		if err := k.Reconcile(ctx, s); err != nil {
			answer = err.Error()
		}
		fmt.Fprintln(out, answer)
	}
	return nil
}

// A process is a Kernel in a process of its own, in the edge's namespace.
type process struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Scanner
	log     lockedBuffer
}

// startProcess runs the test's program, after the command before, which may be empty.
func startProcess(t *testing.T, n *netlab.Network, o Options, attr *syscall.SysProcAttr, before ...string) *process {
	t.Helper()
	self := "/proc/self/exe" // which other users may run
	if len(before) > 0 {
		self, _ = os.Executable()
	}
	command := append(before, self)
	p := &process{cmd: exec.Command(command[0], command[1:]...)}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+o.name())
	p.cmd.SysProcAttr = attr
	p.cmd.Stderr = &p.log
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.answers = bufio.NewScanner(out)
	netlab.In(t, n.Edge, func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.in.Close(); p.cmd.Wait() })
	return p
}

// reconcile has it reconcile and gives its answer.
func (p *process) reconcile(destinations string) string {
	fmt.Fprintln(p.in, destinations)
	p.answers.Scan()
	return p.answers.Text()
}

// TestUnprivileged holds that iptables-nft and nftables need no root, but capabilities.
func TestUnprivileged(t *testing.T) {
	n := newNetwork(t)
	netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
	netlab.In(t, n.Edge, func() { netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0") })
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	for _, o := range []Options{{Backend: BackendNFT}, {Dataplane: DataplaneNFTables}} {
		p := startProcess(t, n, o, &syscall.SysProcAttr{Credential: nobody, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}})
		for _, to := range []string{scenario.Destinations(30), "", " 10.1.0.2:9376"} {
			if got := p.reconcile(to); got != "ok" {
				t.Fatalf("%s: %s\n%s", o.name(), got, &p.log)
			}
		}
		for _, to := range []string{"198.51.100.10:80", edgeIP + ":30001"} {
			if got := netlab.Ask(t, n.Client, "tcp", to); got != "pod 10.0.0.1" {
				t.Errorf("%s: %s: %s", o.name(), to, got)
			}
		}
		p.in.Close()
		if err := p.cmd.Wait(); err != nil {
			t.Error(err)
		}
	}

	legacy := startProcess(t, n, Options{Backend: BackendLegacy}, &syscall.SysProcAttr{Credential: nobody, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}})
	if got, want := legacy.reconcile(""), "iptables-legacy needs root: run as root, or set l4.iptablesBackend: nft"; got != want {
		t.Errorf("legacy: got %s, want %s", got, want)
	}
}

// TestBounded holds that the legacy backend needs to be root, but of root's capabilities no more than these.
func TestBounded(t *testing.T) {
	n := newNetwork(t)
	netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
	p := startProcess(t, n, Options{Backend: BackendLegacy}, nil, "setpriv", "--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all")
	for _, to := range []string{scenario.Destinations(30), "", " 10.1.0.2:9376"} {
		if got := p.reconcile(to); got != "ok" {
			t.Fatalf("%s\n%s", got, &p.log)
		}
	}
	if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:80"); got != "pod 10.0.0.1" {
		t.Errorf("VIP: %s", got)
	}
}

// TestReadOnlySysctls is about systemd's ProtectKernelTunables=: forwarding that is off cannot be turned on, which is said with what to
// do, and forwarding that is on is left alone.
func TestReadOnlySysctls(t *testing.T) {
	n := newNetwork(t)
	netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
	netlab.In(t, n.Edge, func() { netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0") })
	p := startProcess(t, n, Options{Backend: BackendNFT}, nil, "unshare", "--mount", "sh", "-c",
		`mount --bind -o ro /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$0"`)
	const want = "turn IPv4 forwarding on: open /proc/sys/net/ipv4/ip_forward: read-only file system: set net.ipv4.ip_forward=1 in /etc/sysctl.d"
	if got := p.reconcile(" 10.1.0.2:9376"); got != want {
		t.Fatalf("got  %s\nwant %s\n%s", got, want, &p.log)
	}
	netlab.In(t, n.Edge, func() { netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1") })
	if got := p.reconcile(" 10.1.0.2:9376"); got != "ok" {
		t.Fatalf("%s\n%s", got, &p.log)
	}
	if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:80"); !strings.HasPrefix(got, "pod") {
		t.Errorf("VIP: %s", got)
	}
}

// TestKill kills the process at random moments, while it changes all that it keeps in the kernel, and holds that the next one
// makes everything as it should be, that a connection made before lives through all of it, and that a VIP never shows what the
// edge itself runs. SALLYPORT_KILLS is the number of kills.
func TestKill(t *testing.T) {
	kills, err := strconv.Atoi(cmp.Or(os.Getenv("SALLYPORT_KILLS"), "50"))
	if err != nil {
		t.Fatal(err)
	}
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
		netlab.Serve(t, n.Edge, "0.0.0.0:22", "sshd")
		netlab.In(t, n.Edge, func() { netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0") })
		p := startProcess(t, n, o, nil)
		conn, want := settleProcess(t, n, o, p, nil)
		defer conn.Close()
		defer watchGuard(t, n)()
		for i := range kills / 2 {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for i := 0; ; i++ {
					lines := []string{scenario.Destinations(30), noServices, "", scenario.Destinations(3), " 10.1.0.2:9376", noServices}
					if p.reconcile(lines[i%len(lines)]) == "" {
						return
					}
				}
			}()
			after := rand.N(150 * time.Millisecond)
			time.AfterFunc(after, func() { p.cmd.Process.Kill() })
			<-ended
			if err := p.cmd.Wait(); fmt.Sprint(err) != "signal: killed" {
				t.Fatalf("%v instead of killed:\n%s", err, &p.log)
			}
			p = startProcess(t, n, o, nil)
			if _, got := settleProcess(t, n, o, p, conn); got != want {
				t.Fatalf("kill %d, after %v:\n%s\nwant\n%s", i, after, got, want)
			}
		}
	})
}

// settleProcess has the process serve one pod, and gives what the edge then holds. The connection has to work; nil is a new one.
func settleProcess(t *testing.T, n *netlab.Network, o Options, p *process, conn net.Conn) (net.Conn, string) {
	t.Helper()
	if got := p.reconcile(" 10.1.0.2:9376"); got != "ok" {
		t.Fatalf("%s\n%s", got, &p.log)
	}
	want := "hello"
	if conn == nil {
		var err error
		if conn, err = netlab.Dial(t, n.Client, "tcp", "198.51.100.10:80"); err != nil {
			t.Fatal(err)
		}
		want = "pod 10.0.0.1"
	}
	if got := netlab.Exchange(conn); got != want {
		t.Fatalf("connection: %s, want %s", got, want)
	}
	var state string
	netlab.In(t, n.Edge, func() {
		state = netlab.Run(t, "nft", "list", "tables") + rulesOf(t, cmp.Or(o.Backend, BackendNFT)) + netlab.Run(t, "ip", "-4", "route") + netlab.Run(t, "ip", "-4", "-br", "addr") + netlab.Run(t, "sysctl", "net.ipv4.ip_forward")
	})
	return conn, state
}

// watchGuard tries port 22 of the VIP over and over until stop is called.
func watchGuard(t *testing.T, n *netlab.Network) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			conn, err := netlab.Dial(t, n.Client, "tcp", "198.51.100.10:22")
			if err == nil {
				t.Error("the VIP shows the edge's own port 22")
				conn.Close()
			}
		}
	}()
	return func() { close(done); <-ended }
}
