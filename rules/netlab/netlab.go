// Package netlab makes networks of namespaces, for tests that send real packets through an edge. It needs root. Namespaces have
// no names and end with the test, however it ends.
package netlab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// A Network is an edge between a client and a node with pods, in both families:
//
//	client 192.0.2.9 --- 192.0.2.1 edge 10.0.0.1 --- 10.0.0.11 node, pods 10.1.0.2 to 10.1.0.4
//	2001:db8:1::9 --- 2001:db8:1::1     fd00::1 --- fd00::11         fd00:1::2 to fd00:1::4
//
// The client reaches 198.51.100.0/24 and 2001:db8:2::/64 by a route via the edge, which reaches the pods by routes via the node.
// The node knows nothing of the client's network.
type Network struct {
	Client, Edge, Node netns.NsHandle
}

// Addresses of a Network.
const (
	ClientIPv4 = "192.0.2.9"
	ClientIPv6 = "2001:db8:1::9"
	EdgeIPv4   = "192.0.2.1" // on the client's side
	EdgeIPv6   = "2001:db8:1::1"
	NodeIPv4   = "10.0.0.11"
	NodeIPv6   = "fd00::11"
)

// Pods are the addresses that stand on the node for pods.
var Pods = []string{"10.1.0.2", "10.1.0.3", "10.1.0.4", "fd00:1::2", "fd00:1::3", "fd00:1::4"}

// New makes a Network, in which the edge forwards nothing yet.
func New(t testing.TB) *Network {
	t.Helper()
	n := &Network{Client: Namespace(t), Edge: Namespace(t), Node: Namespace(t)}
	for _, ns := range []netns.NsHandle{n.Client, n.Edge, n.Node} {
		In(t, ns, func() {
			Run(t, "ip", "link", "set", "lo", "up")
			Run(t, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0") // or nothing is answered for a second
		})
	}
	In(t, n.Edge, func() {
		Run(t, "sysctl", "-qw", "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0") // the kernel would limit refusals of UDP
		Connect(t, "front", n.Client, EdgeIPv4+"/24 "+EdgeIPv6+"/64", ClientIPv4+"/24 "+ClientIPv6+"/64")
		Connect(t, "back", n.Node, "10.0.0.1/24 fd00::1/64", NodeIPv4+"/24 "+NodeIPv6+"/64")
		Run(t, "ip", "route", "add", "10.1.0.0/24", "via", NodeIPv4)
		Run(t, "ip", "route", "add", "fd00:1::/64", "via", NodeIPv6)
	})
	In(t, n.Client, func() {
		Run(t, "ip", "route", "add", "198.51.100.0/24", "via", EdgeIPv4)
		Run(t, "ip", "route", "add", "2001:db8:2::/64", "via", EdgeIPv6)
	})
	In(t, n.Node, func() {
		for _, ip := range Pods {
			Address(t, "lo", ip)
		}
	})
	return n
}

// Namespace makes one.
func Namespace(t testing.TB) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("SALLYPORT_LAB") != "required" {
		t.Skip("the kernel's rules and network namespaces need root")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (this test needs root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.Set(here); err != nil {
		panic(err) // the thread must not go on in the wrong namespace
	}
	return ns
}

// In runs f inside a namespace, on a thread of its own.
func In(t testing.TB, ns netns.NsHandle, f func()) {
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

// Connect lays a cable from the caller's namespace to another one. Its ends, name here and up0 there, get addresses with prefix
// lengths, separated by spaces.
func Connect(t testing.TB, name string, peer netns.NsHandle, here, there string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0", PeerNamespace: netlink.NsFd(peer)}); err != nil {
		t.Fatal(err)
	}
	up := func(link, addresses string) {
		for a := range strings.FieldsSeq(addresses) {
			Address(t, link, a)
		}
		Run(t, "ip", "link", "set", link, "up")
	}
	In(t, peer, func() { up("up0", there) })
	up(name, here)
	awaitUp(t, name)
	In(t, peer, func() { awaitUp(t, "up0") })
}

// awaitUp waits for the kernel to take notice of a link's carrier, which it does once a second: until then, IPv6 finds no neighbours.
func awaitUp(t testing.TB, name string) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for range 1000 {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return
		}
		<-look.C
	}
	t.Fatalf("link %s has no carrier", name)
}

// Address puts one on a link, where it can be used at once.
func Address(t testing.TB, link, address string) {
	t.Helper()
	command := []string{"ip", "addr", "add", address, "dev", link}
	if strings.Contains(address, ":") {
		command = append(command, "nodad")
	}
	Run(t, command...)
}

// Run runs a command, and ends the test if that fails.
func Run(t testing.TB, command ...string) (output string) {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// Serve answers on addr in a namespace, TCP and UDP: each connection and each datagram gets "name source", then a connection
// everything back that is sent.
func Serve(t testing.TB, ns netns.NsHandle, addr, name string) {
	t.Helper()
	In(t, ns, func() {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			l.Close()
			u.Close()
		})
		go serveTCP(l, name)
		go serveUDP(u, name)
	})
}

func serveTCP(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			fmt.Fprintf(conn, "%s %s\n", name, conn.RemoteAddr().(*net.TCPAddr).IP)
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func serveUDP(u net.PacketConn, name string) {
	b := make([]byte, 100)
	for {
		_, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(writer(func(b []byte) (int, error) { return u.WriteTo(b, from) }), "%s %s\n", name, from.(*net.UDPAddr).IP)
	}
}

type writer func([]byte) (int, error)

// Write calls the function.
func (w writer) Write(b []byte) (int, error) { return w(b) }

// Ask connects from a namespace and returns the first line of the answer, or "refused", or another error.
func Ask(t testing.TB, ns netns.NsHandle, proto, addr string) (answer string) {
	t.Helper()
	conn, err := Dial(t, ns, proto, addr)
	if err != nil {
		return reason(err)
	}
	defer conn.Close()
	return Exchange(conn)
}

// Dial connects from a namespace.
func Dial(t testing.TB, ns netns.NsHandle, proto, addr string) (conn net.Conn, err error) {
	t.Helper()
	In(t, ns, func() { conn, err = net.DialTimeout(proto, addr, time.Second) })
	return conn, err
}

// Exchange sends something and returns the first line of the answer, or "refused", or another error.
func Exchange(conn net.Conn) string {
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err.Error()
	}
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return reason(err)
	}
	b := make([]byte, 200)
	n, err := conn.Read(b)
	if err != nil {
		return reason(err)
	}
	line, _, _ := strings.Cut(string(b[:n]), "\n")
	return line
}

// reason shortens the errors that tests expect.
func reason(err error) string {
	if strings.Contains(err.Error(), "connection refused") {
		return "refused"
	}
	if e, isNet := errors.AsType[net.Error](err); isNet && e.Timeout() {
		return "no answer"
	}
	return err.Error()
}

// Ping sends one echo request of the address's family from a namespace and says whether it was answered.
func Ping(t testing.TB, ns netns.NsHandle, addr string) bool {
	t.Helper()
	proto, echo, reply := "ip4:icmp", []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, byte(0) // RFC 792: type, code, checksum, identifier, sequence
	if strings.Contains(addr, ":") {
		proto, echo, reply = "ip6:ipv6-icmp", []byte{128, 0, 0, 0, 0, 0, 0, 0}, 129 // RFC 4443; the kernel fills in the checksum
	}
	var conn net.Conn
	var err error
	In(t, ns, func() { conn, err = net.Dial(proto, addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(echo); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 200)
	for {
		n, err := conn.Read(b)
		if err != nil {
			return false
		}
		packet := b[:n]
		if proto == "ip4:icmp" { // net gives the IPv4 header too
			packet = packet[20:]
		}
		if packet[0] == reply {
			return true
		}
	}
}
