package rules

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// The network of these tests, in three namespaces without names, which end with the test however it ends:
//
//	client 192.0.2.9 --- 192.0.2.1 edge 10.0.0.1 --- 10.0.0.11 node, pods 10.1.0.2 to 10.1.0.4
//	     2001:db8::9 --- 2001:db8::1    fd00::1 --- fd00::11         fd00:1::2 to fd00:1::4
//
// The client reaches VIPs (198.51.100.0/24, 2001:db8:1::/64) by a route via the edge. The node knows nothing of the client's network.
type network struct {
	client, edge, node netns.NsHandle
}

const (
	clientIP = "192.0.2.9"
	edgeIP   = "192.0.2.1"
	nodeIP   = "10.0.0.11"

	clientIP6 = "2001:db8::9"
	edgeIP6   = "2001:db8::1"
	nodeIP6   = "fd00::11"
)

var (
	podIPs  = []string{"10.1.0.2", "10.1.0.3", "10.1.0.4"}
	podIP6s = []string{"fd00:1::2", "fd00:1::3", "fd00:1::4"}
)

func newNetwork(t testing.TB) *network {
	t.Helper()
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	n := &network{client: newNamespace(t), edge: newNamespace(t), node: newNamespace(t)}
	in(t, n.edge, func() {
		sh(t, "ip", "link", "set", "lo", "up")
		sh(t, "sysctl", "-qw", "net.ipv4.icmp_ratemask=0") // the kernel would limit refusals of UDP
		sh(t, "sysctl", "-qw", "net.ipv6.icmp.ratemask=", "net.ipv6.conf.default.accept_dad=0")
		connect(t, "front", edgeIP+" "+edgeIP6, n.client, clientIP+" "+clientIP6)
		connect(t, "back", "10.0.0.1 fd00::1", n.node, nodeIP+" "+nodeIP6)
	})
	in(t, n.client, func() {
		sh(t, "ip", "link", "set", "lo", "up")
		sh(t, "ip", "route", "add", "198.51.100.0/24", "via", edgeIP)
		sh(t, "ip", "route", "add", "2001:db8:1::/64", "via", edgeIP6)
	})
	in(t, n.node, func() {
		sh(t, "ip", "link", "set", "lo", "up")
		for _, ip := range podIPs {
			sh(t, "ip", "addr", "add", ip+"/32", "dev", "lo")
		}
		for _, ip := range podIP6s {
			sh(t, "ip", "addr", "add", ip+"/128", "dev", "lo", "nodad")
		}
	})
	return n
}

// requireRoot skips a test that needs root, except where the lab, and so root, is required: there it fails by itself.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("SALLYPORT_LAB") != "required" {
		t.Skip("the kernel's rules and network namespaces need root")
	}
}

func newNamespace(t testing.TB) netns.NsHandle {
	t.Helper()
	requireRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (these tests need root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.Set(here); err != nil {
		t.Fatal(err)
	}
	return ns
}

// in runs f inside a namespace, on a thread of its own.
func in(t testing.TB, ns netns.NsHandle, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(here); err != nil {
			panic(err) // the thread must not go on in the wrong namespace
		}
	}()
	f()
}

// connect makes a cable from the namespace that the caller is in to another one, with addresses on it: of IPv4 a /24, of IPv6
// a /64, each.
func connect(t testing.TB, name, addrs string, peer netns.NsHandle, peerAddrs string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0", PeerNamespace: netlink.NsFd(peer)}); err != nil {
		t.Fatal(err)
	}
	up := func(link, addrs string) {
		sh(t, "ip", "link", "set", link, "up")
		for addr := range strings.FieldsSeq(addrs) {
			if strings.Contains(addr, ":") {
				sh(t, "ip", "addr", "add", addr+"/64", "dev", link, "nodad")
			} else {
				sh(t, "ip", "addr", "add", addr+"/24", "dev", link)
			}
		}
	}
	in(t, peer, func() { up("up0", peerAddrs) })
	up(name, addrs)
}

func sh(t testing.TB, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// serve answers on addr in a namespace, TCP and UDP: each connection and each datagram gets the server's name, then
// everything back that is sent.
func serve(t testing.TB, ns netns.NsHandle, addr, name string) {
	t.Helper()
	in(t, ns, func() {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					fmt.Fprintf(conn, "%s %s\n", name, conn.RemoteAddr().(*net.TCPAddr).IP)
					io.Copy(conn, conn)
				}()
			}
		}()
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo([]byte(name+"\n"), from)
			}
		}()
	})
}

// ask connects from a namespace and returns the first line of the answer, or "refused", or another error.
func ask(t *testing.T, ns netns.NsHandle, proto, addr string) (answer string) {
	t.Helper()
	conn, err := dial(t, ns, proto, addr)
	if err != nil {
		return reason(err)
	}
	defer conn.Close()
	return exchange(conn)
}

// ping sends one echo request from a namespace and says whether it was answered.
func ping(t *testing.T, ns netns.NsHandle, addr string) bool {
	t.Helper()
	var conn net.Conn
	var err error
	in(t, ns, func() { conn, err = net.Dial("ip4:icmp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	request := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // RFC 792: type, code, checksum, identifier, sequence
	if _, err := conn.Write(request); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 100)
	n, err := conn.Read(reply)
	return err == nil && n >= 28 && reply[20] == 0 // behind the IPv4 header: echo reply
}

func dial(t testing.TB, ns netns.NsHandle, proto, addr string) (conn net.Conn, err error) {
	t.Helper()
	in(t, ns, func() { conn, err = net.DialTimeout(proto, addr, 2*time.Second) })
	return conn, err
}

func exchange(conn net.Conn) string {
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return reason(err)
	}
	b := make([]byte, 100)
	n, err := conn.Read(b)
	if err != nil {
		return reason(err)
	}
	line, _, _ := strings.Cut(string(b[:n]), "\n")
	return line
}

func reason(err error) string {
	if strings.Contains(err.Error(), "connection refused") {
		return "refused"
	}
	return err.Error()
}

// startKernel makes a Kernel in the edge's namespace and returns a function that reconciles there.
func startKernel(t testing.TB, n *network, o Options) (reconcile func(*model.Snapshot)) {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	var k *Kernel
	var err error
	in(t, n.edge, func() { k, err = NewKernel(o) })
	if err != nil {
		t.Fatal(err)
	}
	return func(s *model.Snapshot) {
		t.Helper()
		in(t, n.edge, func() {
			if err := k.Reconcile(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// bothBackends runs a test with each flavour of iptables.
func bothBackends(t *testing.T, f func(t *testing.T, b Backend)) {
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		t.Run(string(b), func(t *testing.T) { f(t, b) })
	}
}

func TestTraffic(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		n := newNetwork(t)
		for _, ip := range podIPs {
			serve(t, n.node, ip+":9376", ip)
		}
		serve(t, n.edge, "0.0.0.0:22", "sshd") // and whatever else the edge itself runs
		serve(t, n.edge, "0.0.0.0:443", "l7")
		reconcile := startKernel(t, n, Options{Backend: b, Options: plan.Options{VIPPorts: []uint16{443}}})
		reconcile(scenario.Snapshot(
			scenario.Service("empty", "198.51.100.11", "TCP 80 30002:", "UDP 80 30002:"),
			scenario.Service("three", "198.51.100.10", "TCP 80 30001: 10.1.0.2:9376 10.1.0.3:9376 10.1.0.4:9376"),
			scenario.Service("udp", "198.51.100.10", "UDP 53 30053: 10.1.0.2:9376"),
		))

		for _, addr := range []string{edgeIP, "198.51.100.10"} {
			if !ping(t, n.client, addr) {
				t.Errorf("%s does not answer a ping", addr)
			}
		}
		for _, tt := range []struct{ from, proto, to, want string }{
			{"client", "tcp", edgeIP + ":30001", "10.1.0.2 10.1.0.3 10.1.0.4"},
			{"client", "tcp", "198.51.100.10:80", "10.1.0.2 10.1.0.3 10.1.0.4"},
			{"client", "udp", edgeIP + ":30053", "10.1.0.2"},
			{"client", "udp", "198.51.100.10:53", "10.1.0.2"},
			{"edge", "tcp", edgeIP + ":30001", "10.1.0.2 10.1.0.3 10.1.0.4"},
			{"edge", "tcp", "198.51.100.10:80", "10.1.0.2 10.1.0.3 10.1.0.4"},
			{"client", "tcp", edgeIP + ":30002", "refused"},
			{"client", "udp", edgeIP + ":30002", "refused"},
			{"client", "tcp", "198.51.100.11:80", "refused"},
			{"client", "udp", "198.51.100.11:80", "refused"},
			{"edge", "tcp", edgeIP + ":30002", "refused"},
			{"client", "tcp", "198.51.100.10:30001", "refused"}, // no NodePorts at a VIP
			{"client", "tcp", "198.51.100.10:22", "refused"},
			{"client", "udp", "198.51.100.10:22", "refused"},
			{"edge", "tcp", "198.51.100.10:22", "refused"},
			{"client", "tcp", edgeIP + ":22", "sshd"},
			{"client", "tcp", "198.51.100.10:443", "l7"},
			{"edge", "tcp", "127.0.0.1:30001", "refused"},
		} {
			t.Run(tt.from+" to "+tt.proto+" "+tt.to, func(t *testing.T) {
				ns := map[string]netns.NsHandle{"client": n.client, "edge": n.edge}[tt.from]
				want := map[string]bool{}
				for name := range strings.FieldsSeq(tt.want) {
					want[name] = false
				}
				for range 60 {
					answer, source, _ := strings.Cut(ask(t, ns, tt.proto, tt.to), " ")
					if _, ok := want[answer]; !ok {
						t.Fatalf("got %s, want %s", answer+" "+source, tt.want)
					}
					if strings.HasPrefix(answer, "10.") && source != "" && source != "10.0.0.1" {
						t.Fatalf("endpoint sees source %s, want the edge's 10.0.0.1", source)
					}
					want[answer] = true
				}
				for name, seen := range want {
					if !seen {
						t.Errorf("%s did not answer in 60 tries", name)
					}
				}
			})
		}
	})
}
