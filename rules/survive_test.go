package rules

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
)

// A pair is two edges, 0 and 1, between a client with many addresses and a node with pods:
//
//	client 172.16.0.1 to .20 --- edge 0 --- node, pods 10.1.0.2 to 10.1.0.4
//	       fd00:c::1 to ::14 --- edge 1 ---            fd00:1::2 to fd00:1::4
type pair struct {
	client, node netns.NsHandle
	edges        [2]netns.NsHandle
	kernels      [2]*Kernel
}

const clients = 20

func newPair(t *testing.T, o Options) *pair {
	t.Helper()
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "xtables.lock"))
	p := &pair{client: netlab.Namespace(t), node: netlab.Namespace(t), edges: [2]netns.NsHandle{netlab.Namespace(t), netlab.Namespace(t)}}
	for _, ns := range []netns.NsHandle{p.client, p.node, p.edges[0], p.edges[1]} {
		netlab.In(t, ns, func() {
			netlab.Run(t, "ip", "link", "set", "lo", "up")
			netlab.Run(t, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
		})
	}
	netlab.In(t, p.client, func() {
		for i := range clients {
			netlab.Address(t, "lo", fmt.Sprintf("172.16.0.%d/32", i+1))
			netlab.Address(t, "lo", fmt.Sprintf("fd00:c::%x/128", i+1))
		}
	})
	netlab.In(t, p.node, func() {
		for _, ip := range netlab.Pods {
			netlab.Address(t, "lo", ip)
		}
	})
	for i, edge := range p.edges {
		netlab.In(t, edge, func() {
			p.cable(t, "front", p.client, i)
			p.cable(t, "back", p.node, i)
			netlab.Run(t, "ip", "route", "add", "172.16.0.0/24", "via", fmt.Sprintf("10.2.%d.9", i))
			netlab.Run(t, "ip", "route", "add", "fd00:c::/64", "via", fmt.Sprintf("fd00:2:%d::9", i))
			var err error
			if p.kernels[i], err = NewKernel(o); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.kernels[i].Close)
		})
	}
	return p
}

// cable connects the edge i, where the caller is, to the client or the node.
func (p *pair) cable(t *testing.T, name string, peer netns.NsHandle, i int) {
	t.Helper()
	net4, net6 := fmt.Sprintf("10.2.%d", i), fmt.Sprintf("fd00:2:%d:", i)
	if name == "back" {
		net4, net6 = fmt.Sprintf("10.3.%d", i), fmt.Sprintf("fd00:3:%d:", i)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	port := fmt.Sprintf("%s%d", name, i)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: port, PeerNamespace: netlink.NsFd(peer)}); err != nil {
		t.Fatal(err)
	}
	up := func(link, host string) {
		netlab.Address(t, link, net4+"."+host+"/24")
		netlab.Address(t, link, net6+":"+host+"/64")
		netlab.Run(t, "ip", "link", "set", link, "up")
	}
	up(name, "1")
	netlab.In(t, peer, func() { up(port, "9") })
}

// serve has both edges serve a VIP of each family.
func (p *pair) serve(t *testing.T) {
	t.Helper()
	for i, edge := range p.edges {
		to := ""
		for _, ip := range netlab.Pods {
			to += " " + net.JoinHostPort(ip, "9376")
		}
		s := dual(scenario.Service("web", "198.51.100.10 2001:db8:2::10", "TCP 80 0:"+to))
		s.Nodes[0].InternalIPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.3.%d.9", i)), netip.MustParseAddr(fmt.Sprintf("fd00:3:%d::9", i))}
		netlab.In(t, edge, func() {
			if err := p.kernels[i].Reconcile(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// moveTo has what moves with the group lead to edge i: VIPs for the client; for the node SNAT addresses and clients.
func (p *pair) moveTo(t *testing.T, i int) {
	t.Helper()
	route := func(net4, net6 string, to ...string) {
		for _, network := range to {
			gateway := fmt.Sprintf("%s.%d.1", net4, i)
			if strings.Contains(network, ":") {
				gateway = fmt.Sprintf("%s:%d::1", net6, i)
			}
			netlab.Run(t, "ip", "route", "replace", network, "via", gateway)
		}
	}
	netlab.In(t, p.client, func() { route("10.2", "fd00:2", "198.51.100.0/24", "2001:db8:2::/64") })
	netlab.In(t, p.node, func() { route("10.3", "fd00:3", "10.4.0.0/24", "fd00:4::/64", "172.16.0.0/24", "fd00:c::/64") })
}

// kill takes edge i off the network.
func (p *pair) kill(t *testing.T, i int) {
	t.Helper()
	netlab.In(t, p.edges[i], func() {
		netlab.Run(t, "ip", "link", "set", "front", "down")
		netlab.Run(t, "ip", "link", "set", "back", "down")
	})
}

// serveFlows serves on a pod: a connection that begins with d gets something 20 times a second, another one all back that it sends.
func serveFlows(t *testing.T, ns netns.NsHandle, addr string) {
	t.Helper()
	var l net.Listener
	netlab.In(t, ns, func() {
		var err error
		if l, err = net.Listen("tcp", addr); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveFlow(conn)
		}
	}()
}

func serveFlow(conn net.Conn) {
	defer conn.Close()
	kind := make([]byte, 1)
	if _, err := io.ReadFull(conn, kind); err != nil {
		return
	}
	if kind[0] != 'd' {
		_, _ = io.Copy(conn, conn)
		return
	}
	tick := time.NewTicker(time.Second / 20)
	defer tick.Stop()
	for range tick.C {
		if _, err := conn.Write(make([]byte, 100)); err != nil {
			return
		}
	}
}

// A flow is a connection in use.
type flow struct {
	kind     byte // d: download, e: echo, t: echo with time to think
	conn     net.Conn
	progress atomic.Int64 // when something last came, in nanoseconds
	failed   atomic.Pointer[error]
}

// run uses the connection until it is closed.
func (f *flow) run() {
	tick := time.NewTicker(map[byte]time.Duration{'d': time.Millisecond, 'e': time.Second / 10, 't': 2 * time.Second}[f.kind])
	defer tick.Stop()
	_, err := f.conn.Write([]byte{f.kind})
	for b := make([]byte, 100); err == nil; <-tick.C {
		if f.kind != 'd' {
			_, err = f.conn.Write(b)
		}
		if err == nil {
			_, err = io.ReadFull(f.conn, b)
		}
		if err == nil {
			f.progress.Store(time.Now().UnixNano())
		}
	}
	f.failed.Store(&err)
}

// TestFlowsSurvive holds that connections live on when their edge dies and its group moves to another one, unless their source is
// replaced by an address that does not move. SALLYPORT_FLOWS is their number.
func TestFlowsSurvive(t *testing.T) {
	count, err := strconv.Atoi(cmp.Or(os.Getenv("SALLYPORT_FLOWS"), "300"))
	if err != nil {
		t.Fatal(err)
	}
	groups := []plan.Group{{Name: "a", SNATAddresses: []plan.Range{
		{First: netip.MustParseAddr("10.4.0.1"), Last: netip.MustParseAddr("10.4.0.4")},
		{First: netip.MustParseAddr("fd00:4::1"), Last: netip.MustParseAddr("fd00:4::4")}}}}
	everyDataplane(t, func(t *testing.T, o Options) {
		for _, tt := range []struct {
			name    string
			path    plan.ReturnPath
			groups  []plan.Group
			wait    time.Duration
			atLeast int // percent
			atMost  int
		}{
			{"the group's addresses", plan.ReturnDirect, groups, 25 * time.Second, 99, 100},
			{"the clients' own", plan.ReturnEdge, nil, 25 * time.Second, 99, 100},
			{"the edge's address", plan.ReturnDirect, nil, 5 * time.Second, 0, 5},
		} {
			t.Run(tt.name, func(t *testing.T) {
				o.HashSeed, o.ReturnPath, o.Groups = 0x5eed, tt.path, tt.groups
				p := newPair(t, o)
				for _, ip := range netlab.Pods {
					serveFlows(t, p.node, net.JoinHostPort(ip, "9376"))
				}
				p.serve(t)
				p.moveTo(t, 0)
				flows := p.open(t, count)
				defer closeFlows(flows)
				p.kill(t, 0)
				p.moveTo(t, 1)
				alive, detail := survivors(flows, time.Now(), tt.wait)
				t.Logf("%d of %d flows live: %s", alive, len(flows), detail)
				if percent := alive * 100 / len(flows); percent < tt.atLeast || percent > tt.atMost {
					t.Errorf("%d %% of the flows live, want %d to %d", percent, tt.atLeast, tt.atMost)
				}
			})
		}
	})
}

// open opens flows to the VIP of each family, from all addresses of the client in turn, and waits until each is in use.
func (p *pair) open(t *testing.T, count int) (flows []*flow) {
	t.Helper()
	start := time.Now()
	for i := range count {
		from, to := fmt.Sprintf("172.16.0.%d", i/2%clients+1), "198.51.100.10:80"
		if i%2 == 1 {
			from, to = fmt.Sprintf("fd00:c::%x", i/2%clients+1), "[2001:db8:2::10]:80"
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: 2 * time.Second, Count: 30}}
		f := &flow{kind: "dte"[i/2%3]}
		var err error
		netlab.In(t, p.client, func() { f.conn, err = d.Dial("tcp", to) })
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, f)
		go f.run()
	}
	if alive, detail := survivors(flows, start, 20*time.Second); alive != len(flows) {
		t.Fatalf("%d of %d flows work to begin with: %s", alive, len(flows), detail)
	}
	return flows
}

func closeFlows(flows []*flow) {
	for _, f := range flows {
		f.conn.Close()
	}
}

// survivors counts the flows on which something came after a time, and waits for that at most so long. It tells of the others by kind.
func survivors(flows []*flow, after time.Time, wait time.Duration) (alive int, detail string) {
	dead := map[string]int{}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(wait); ; <-tick.C {
		alive = 0
		clear(dead)
		for _, f := range flows {
			switch err := f.failed.Load(); {
			case f.progress.Load() > after.UnixNano():
				alive++
			case err != nil:
				dead[fmt.Sprintf("%c: %v", f.kind, (*err).Error()[strings.LastIndex((*err).Error(), ":")+1:])]++
			default:
				dead[string(f.kind)+": silent"]++
			}
		}
		if alive == len(flows) || time.Now().After(deadline) {
			return alive, fmt.Sprint(dead)
		}
	}
}
