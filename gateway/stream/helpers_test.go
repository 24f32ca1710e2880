package stream

import (
	"bufio"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

// patience is how long a test waits for what should happen at once.
const patience = 20 * time.Second

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// loopback returns an address of 127.0.0.0/8 that no other test uses, so that any port of it is free.
func loopback() netip.Addr {
	n := loopbacks.Add(1)
	return netip.AddrFrom4([4]byte{127, byte(n>>16)%100 + 100, byte(n >> 8), byte(n)})
}

// loopbacks starts anywhere, for test processes that run at the same time.
var loopbacks = func() *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(rand.Uint32())
	return n
}()

// An edge is a proxy under test, and the one address that its NodePorts are on.
type edge struct {
	*Proxy
	ip       netip.Addr
	registry *prometheus.Registry
}

func newEdge(t testing.TB, o Options) edge {
	e := edge{ip: loopback(), registry: prometheus.NewRegistry()}
	o.NodePortAddresses = []netip.Addr{e.ip}
	o.Metrics = e.registry
	e.Proxy = New(o)
	t.Cleanup(e.Close)
	return e
}

func (e edge) at(port uint16) string { return netip.AddrPortFrom(e.ip, port).String() }

// mustReconcile applies a snapshot of the services, without complaint.
func (e edge) mustReconcile(t testing.TB, services ...model.Service) {
	t.Helper()
	if err := e.Reconcile(t.Context(), &model.Snapshot{Services: services}); err != nil {
		t.Fatalf("Reconcile: %v", err)
	}
}

// value returns what the metric of that name amounts to, over all its labels.
func (e edge) value(t testing.TB, name string) float64 {
	t.Helper()
	families, err := e.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			sum := 0.0
			for _, m := range f.Metric {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// servicePort is the port that service gives its Services. It is one that needs no privilege.
const servicePort = 8080

// service returns a Service with one port, and a NodePort unless it is 0.
func service(name string, p model.Protocol, nodePort uint16, destinations ...netip.AddrPort) model.Service {
	port := model.ServicePort{Protocol: p, Port: servicePort, NodePort: nodePort}
	for _, d := range destinations {
		port.Destinations = append(port.Destinations, model.Destination{Addr: d, Reach: model.ReachPods})
	}
	return model.Service{Ref: model.ObjectRef{Kind: "Service", Namespace: "default", Name: name}, Ports: []model.ServicePort{port}}
}

// tcpServer runs handle for each connection to an address of its own, and closes it after that.
func tcpServer(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(loopback(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the proxy's connection
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// tcpEcho says its name in a line of its own, and then repeats what it hears.
func tcpEcho(t testing.TB, name string) netip.AddrPort {
	return tcpServer(t, func(c *net.TCPConn) {
		io.WriteString(c, name+"\n")
		io.Copy(c, c)
	})
}

// A client is a TCP connection through the proxy.
type client struct {
	*net.TCPConn
	r *bufio.Reader
}

func dial(t testing.TB, addr string) client {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return client{c.(*net.TCPConn), bufio.NewReader(c)}
}

// line reads one line, such as the name of an echo server.
func (c client) line(t testing.TB) string {
	t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatalf("read a line: %q, %v", s, err)
	}
	return strings.TrimSuffix(s, "\n")
}

// mustEcho says something and expects it back.
func (c client) mustEcho(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(c, "marco\n"); err != nil {
		t.Fatal(err)
	}
	if got := c.line(t); got != "marco" {
		t.Errorf("echo = %q, want %q", got, "marco")
	}
}

// unused returns an address that nothing listens on.
func unused() netip.AddrPort { return netip.AddrPortFrom(loopback(), 9) }

// udpEcho answers each datagram with its name, a colon and the datagram.
func udpEcho(t testing.TB, name string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() { // ends with the socket
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteToUDPAddrPort(append([]byte(name+":"), buf[:n]...), from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// udpDial returns a socket that takes answers from addr only.
func udpDial(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.UDPConn)
}

// ask sends one datagram and returns the answer.
func ask(t testing.TB, c *net.UDPConn, text string) string {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxDatagram)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}
