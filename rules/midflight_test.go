package rules

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// TestSourceRangesInFlight closes a Service to a client that is connected: its connection goes on, and it gets no new one.
func TestSourceRangesInFlight(t *testing.T) {
	everySite(t, Options{}, func(t *testing.T, s *site) {
		s.reconcile(s.service("A B", nil))
		conn := s.dial(t)
		s.reconcile(s.service("A B", func(svc *model.Service) {
			svc.SourceRanges = &model.SourceRanges{Prefixes: prefixes("203.0.113.0/24", "2001:db8:77::/48")}
		}))
		if got := s.named(netlab.Exchange(conn)); !strings.HasSuffix(got, " BACK") {
			t.Errorf("the connection that was there: got %s", got)
		}
		if got := s.ask(t, s.Client, "VIP:80"); got != "no answer" {
			t.Errorf("a new connection: got %s", got)
		}
		s.reconcile(s.service("A B", nil))
		if got := s.ask(t, s.Client, "VIP:80"); !strings.HasSuffix(got, " BACK") {
			t.Errorf("open again: got %s", got)
		}
	})
}

// TestLimitsInFlight has another Service change: the connections that there are still count. With iptables-legacy they do not where
// the filter table changes, as it does when a VIP comes or goes.
func TestLimitsInFlight(t *testing.T) {
	everySite(t, Options{}, func(t *testing.T, s *site) {
		snapshot := s.service("A B", func(svc *model.Service) { svc.Limits = &model.Limits{PerClient: 2} })
		other := s.service("B C", func(svc *model.Service) {
			svc.Ref.Name = "other"
			svc.VIPs = []netip.Addr{netip.MustParseAddr(s.at["VIP"]).Next()}
			for i := range svc.Ports {
				svc.Ports[i].NodePort++
			}
		}).Services[0]
		snapshot.Services = append(snapshot.Services, other)
		s.reconcile(snapshot)
		for range 2 {
			s.dial(t)
		}
		count := func(why string) {
			t.Helper()
			s.reconcile(snapshot)
			if got := s.ask(t, s.Client, "VIP:80"); got != "no answer" {
				t.Errorf("%s: a third connection: got %s", why, got)
			}
		}
		other.Ports = slices.Clone(other.Ports)
		other.Ports[0].Destinations = other.Ports[0].Destinations[:1]
		snapshot.Services = []model.Service{snapshot.Services[0], other}
		count("endpoints of another Service change")
		if s.backend != BackendLegacy {
			snapshot.Services = snapshot.Services[:1]
			count("another Service goes")
		}
	})
}

// dial connects to the VIP until the test ends.
func (s *site) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := netlab.Dial(t, s.Client, "tcp", net.JoinHostPort(s.at["VIP"], "80"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestTooBig sends what a router says of a packet that is too big for the next link: it gets to the endpoint, which would
// otherwise send it again and again.
func TestTooBig(t *testing.T) {
	for _, path := range []plan.ReturnPath{plan.ReturnDirect, plan.ReturnEdge} {
		t.Run(string(path), func(t *testing.T) {
			everySite(t, Options{Options: plan.Options{ReturnPath: path}}, func(t *testing.T, s *site) {
				s.reconcile(s.service("A", nil))
				s.routeClients(t)
				conn := s.dial(t)
				proto, header, kind := "ip4:icmp", 20, byte(3) // destination unreachable (RFC 792), fragmentation needed (RFC 1191)
				if strings.Contains(s.at["A"], ":") {
					proto, header, kind = "ip6:ipv6-icmp", 40, 2 // packet too big (RFC 4443, section 3.2)
				}
				heard := make(chan string, 1)
				var at net.PacketConn
				netlab.In(t, s.Node, func() {
					var err error
					if at, err = net.ListenPacket(proto, ""); err != nil {
						t.Fatal(err)
					}
				})
				defer at.Close()
				if err := at.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
					t.Fatal(err)
				}
				go func() { heard <- hearTooBig(at, kind, header) }()
				netlab.In(t, s.Client, func() {
					out, err := net.DialIP(proto, nil, &net.IPAddr{IP: net.ParseIP(s.at["VIP"])})
					if err != nil {
						t.Fatal(err)
					}
					defer out.Close()
					vip := netip.AddrPortFrom(netip.MustParseAddr(s.at["VIP"]), 80)
					if _, err := out.Write(tooBig(kind, vip, conn.LocalAddr().(*net.TCPAddr).AddrPort())); err != nil {
						t.Fatal(err)
					}
				})
				if got := s.named(<-heard); got != "A" {
					t.Errorf("about a packet of %q, want one of A", got)
				}
			})
		})
	}
}

// tooBig says that a TCP packet is. The kernel fills in the checksum of ICMPv6 (RFC 3542, section 3.1).
func tooBig(kind byte, from, to netip.AddrPort) []byte {
	var inner []byte
	if from.Addr().Is4() {
		inner = append([]byte{0x45, 0, 5, 220, 0, 0, 0x40, 0, 64, 6, 0, 0}, append(from.Addr().AsSlice(), to.Addr().AsSlice()...)...)
		binary.BigEndian.PutUint16(inner[10:], sum(inner))
	} else {
		inner = append([]byte{0x60, 0, 0, 0, 5, 180, 6, 64}, append(from.Addr().AsSlice(), to.Addr().AsSlice()...)...)
	}
	inner = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(inner, from.Port()), to.Port())
	inner = append(inner, make([]byte, 16)...)
	inner[len(inner)-8] = 0x50
	message := append([]byte{kind, 0, 0, 0, 0, 0, 5, 20}, inner...) // MTU 1300
	if from.Addr().Is4() {
		message[1] = 4
		binary.BigEndian.PutUint16(message[2:], sum(message))
	}
	return message
}

// sum is the checksum of the internet (RFC 1071), of a whole number of words.
func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) > 0; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	s = s>>16 + s&0xffff
	return ^uint16(s + s>>16)
}

// hearTooBig gives the source of the packet that an ICMP message of the kind is about.
func hearTooBig(at net.PacketConn, kind byte, header int) string {
	b := make([]byte, 1500)
	for {
		n, _, err := at.ReadFrom(b)
		if err != nil {
			return err.Error()
		}
		if n < 8+header || b[0] != kind {
			continue
		}
		inner, from := b[8:n], map[int][2]int{20: {12, 16}, 40: {8, 24}}[header]
		a, _ := netip.AddrFromSlice(inner[from[0]:from[1]])
		return a.String()
	}
}
