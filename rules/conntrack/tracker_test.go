package conntrack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"sallyport/rules/netlab"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// newTracker makes a Tracker of the edge, which runs until the test ends.
func newTracker(t testing.TB, n *network, r prometheus.Registerer) *Tracker {
	t.Helper()
	var tr *Tracker
	netlab.In(t, n.edge, func() {
		var err error
		if tr, err = New(Options{Mark: 0x53000000, MarkMask: 0xff000000, Metrics: r}); err != nil {
			t.Fatal(err)
		}
	})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		tr.Close()
	})
	return tr
}

// dns is the Service of both families, with a destination in each of the pods named by their numbers.
func dns(proto string, pods ...int) model.Service {
	to := ""
	for _, f := range families { // destinations are ordered by address
		for _, i := range pods {
			to += " " + net.JoinHostPort(f.pods[i], "53")
		}
	}
	return scenario.Service("dns", families[0].vip+" "+families[1].vip, proto+" 53 30053:"+to)
}

func reconcile(t testing.TB, tr *Tracker, services ...model.Service) {
	t.Helper()
	local := []netip.Addr{netip.MustParseAddr(families[1].edge), netip.MustParseAddr(families[0].edge)}
	if err := tr.Reconcile(t.Context(), scenario.Snapshot(services...), local); err != nil {
		t.Fatal(err)
	}
}

// A peer sends datagrams from one port of the client.
type peer struct {
	net.Conn
	t testing.TB
}

func (n *network) dial(t testing.TB, proto, addr, port string) *peer {
	t.Helper()
	var conn net.Conn
	netlab.In(t, n.client, func() {
		var err error
		if conn, err = net.DialTimeout(proto, net.JoinHostPort(addr, port), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { conn.Close() })
	return &peer{conn, t}
}

// ask sends a datagram and returns the answer, or "refused".
func (p *peer) ask() string {
	p.t.Helper()
	p.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := p.Write([]byte("?")); err != nil {
		p.t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := p.Read(b)
	if errors.Is(err, unix.ECONNREFUSED) {
		return "refused"
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b[:n])
}

// answer has both pods of a family answer by their address, by UDP.
func (n *network) answer(t testing.TB, f family) {
	for _, pod := range f.pods {
		netlab.In(t, n.edge, func() {
			l, err := net.ListenPacket("udp", net.JoinHostPort(pod, "53"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				b := make([]byte, 100)
				for {
					_, from, err := l.ReadFrom(b)
					if err != nil {
						return
					}
					l.WriteTo([]byte(pod), from)
				}
			}()
		})
	}
}

// A client of UDP goes where the Service does, whatever its entry said.
func TestStaleUDP(t *testing.T) {
	for _, f := range families {
		for _, at := range [][2]string{{f.vip, "53"}, {f.edge, "30053"}} {
			t.Run(f.name+"/"+at[1], func(t *testing.T) {
				n := newNetwork(t)
				n.answer(t, f)
				client := n.dial(t, "udp", at[0], at[1])
				want := func(when, want string) {
					t.Helper()
					if got := client.ask(); got != want {
						t.Errorf("%s: answered by %q, want %q", when, got, want)
					}
				}
				tr := newTracker(t, n, nil)
				reconcile(t, tr)
				want("before the Service", "refused")
				n.translate(t, f, "udp", f.pods[0])
				want("by its entry of before", "refused")
				reconcile(t, tr, dns("UDP", 0))
				want("with the Service", f.pods[0])
				n.translate(t, f, "udp", f.pods[1])
				reconcile(t, tr, dns("UDP", 0, 1))
				want("with an endpoint more", f.pods[0])
				reconcile(t, newTracker(t, n, nil), dns("UDP", 0, 1))
				want("after a restart", f.pods[0])
				reconcile(t, tr, dns("UDP", 1))
				want("with its endpoint gone", f.pods[1])
				n.sever(t, f)
				reconcile(t, tr, dns("UDP"))
				want("with the last endpoint gone", "refused")
			})
		}
	}
}

// What a Service leaves behind is deleted, also by a process that did not know it.
func TestStaleUDPOfServiceGone(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for _, f := range families {
			n := newNetwork(t)
			n.answer(t, f)
			tr := newTracker(t, n, nil)
			reconcile(t, tr, dns("UDP", 0))
			n.translate(t, f, "udp", f.pods[0])
			client := n.dial(t, "udp", f.vip, "53")
			if got := client.ask(); got != f.pods[0] {
				t.Fatalf("answered by %q", got)
			}
			n.sever(t, f)
			if restart {
				tr = newTracker(t, n, nil)
			}
			reconcile(t, tr)
			if got := client.ask(); got != "refused" {
				t.Errorf("%s, restart %v: answered by %q, want refused", f.name, restart, got)
			}
		}
	}
}

// entries lists the edge's table, without what changes by itself.
func (n *network) entries(t testing.TB, proto string) (list string) {
	netlab.In(t, n.edge, func() {
		for _, version := range []string{"ipv4", "ipv6"} {
			list += netlab.Run(t, "conntrack", "-L", "-f", version, "-p", proto, "-o", "id")
		}
	})
	return list
}

// Flows of TCP, and of others, stay whatever becomes of a Service.
func TestOthersStay(t *testing.T) {
	n, f := newNetwork(t), families[0]
	n.answer(t, f)
	n.echo(t, f)
	tr := newTracker(t, n, nil)
	n.translate(t, f, "tcp", f.pods[0])
	tcp := n.dial(t, "tcp", f.vip, "53")
	reconcile(t, tr, dns("TCP", 0))
	netlab.In(t, n.client, func() { netlab.Run(t, "ip", "route", "add", "10.1.0.0/24", "via", f.edge) })
	if got := n.dial(t, "udp", f.pods[1], "53").ask(); got != f.pods[1] {
		t.Fatalf("a pod's own address is answered by %q", got)
	}
	before := n.entries(t, "udp")
	reconcile(t, tr)
	if after := n.entries(t, "udp"); after != before {
		t.Errorf("entries of UDP were\n%s\nand are\n%s", before, after)
	}
	if got := tcp.ask(); got != "?" {
		t.Errorf("the connection of TCP answers %q", got)
	}
}

// echo has both pods of a family send back what they get, by TCP.
func (n *network) echo(t testing.TB, f family) {
	for _, pod := range f.pods {
		netlab.In(t, n.edge, func() {
			l, err := net.Listen("tcp", net.JoinHostPort(pod, "53"))
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
						io.Copy(conn, conn)
					}()
				}
			}()
		})
	}
}

// A datagram that is refused leaves no entry, so that the next one can find an endpoint.
func TestRefusedUDPLeavesNoEntry(t *testing.T) {
	n := newNetwork(t)
	for _, f := range families {
		netlab.In(t, n.edge, func() {
			netlab.Run(t, f.iptables, "-w", "-A", "INPUT", "-p", "udp", "-d", f.vip, "-j", "REJECT")
		})
		if got := n.dial(t, "udp", f.vip, "53").ask(); got != "refused" {
			t.Errorf("%s: answered by %q", f.name, got)
		}
	}
	if list := n.entries(t, "udp"); strings.Contains(list, "dport=53") {
		t.Errorf("there are entries:\n%s", list)
	}
}

// An entry that got the place of a stale one stays.
func TestDeleteByIdentity(t *testing.T) {
	n := newNetwork(t)
	tr := newTracker(t, n, nil)
	var found []doomed
	read := func() int {
		found = nil
		if err := tr.table.ofUDP(func(f *flow) { found = append(found, doom(f)) }); err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	n.make(t, 1, 0x53000000, nil)
	if read() != 1 {
		t.Fatalf("%d entries, want 1", len(found))
	}
	right, wrong := found[0], found[0]
	wrong.id ^= 1
	for i, step := range []struct {
		d    doomed
		left int
	}{{wrong, 1}, {right, 0}, {right, 0}} {
		if err := tr.table.delete(step.d); err != nil {
			t.Fatal(err)
		}
		if got := read(); got != step.left {
			t.Errorf("%d entries are left by deletion %d, want %d", got, i, step.left)
		}
	}
}

// The table is read when something changed by which an entry may be stale, and not otherwise. One that no change accounts for
// shows when it was.
func TestReadWhenNeeded(t *testing.T) {
	n := newNetwork(t)
	tr := newTracker(t, n, nil)
	web := scenario.Service("web", "198.51.100.80", "TCP 80 0: 10.1.0.9:80")
	reconcile(t, tr, dns("UDP", 0), web)
	n.make(t, 1, 0x53000000, func(int) netip.AddrPort { return netip.MustParseAddrPort("198.51.100.99:53") })
	for _, step := range []struct {
		name     string
		services []model.Service
		left     bool
	}{
		{"nothing", []model.Service{dns("UDP", 0), web}, true},
		{"an endpoint of TCP", []model.Service{dns("UDP", 0), scenario.Service("web", "198.51.100.80", "TCP 80 0:")}, true},
		{"an endpoint more", []model.Service{dns("UDP", 0, 1), web}, true},
		{"an endpoint less", []model.Service{dns("UDP", 1), web}, false},
	} {
		reconcile(t, tr, step.services...)
		if left := strings.Contains(n.entries(t, "udp"), "198.51.100.99"); left != step.left {
			t.Errorf("%s: the entry is there: %v", step.name, left)
		}
	}
}

// Snapshots are let go when there is a new one, also if no service port changed.
func TestOldSnapshotsGo(t *testing.T) {
	var tr Tracker
	first, second := []model.Service{dns("TCP", 0)}, []model.Service{dns("TCP", 1)}
	x := tr.learn(first, edge)
	if tr.learn(second, edge) != x {
		t.Error("an endpoint of TCP makes another index")
	}
	if &x.services[0] != &second[0] {
		t.Error("the index keeps the first snapshot")
	}
}
