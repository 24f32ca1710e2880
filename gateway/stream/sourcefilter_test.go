package stream

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// ranges returns prefixes as translation does: masked, ordered, disjoint.
func ranges(prefixes ...netip.Prefix) *model.SourceRanges {
	var out []netip.Prefix
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Compare(b) })
	for _, p := range prefixes {
		if !slices.ContainsFunc(out, p.Overlaps) {
			out = append(out, p)
		}
	}
	return &model.SourceRanges{Prefixes: out}
}

func rangesOf(prefixes ...string) *model.SourceRanges {
	var out []netip.Prefix
	for _, p := range prefixes {
		out = append(out, netip.MustParsePrefix(p))
	}
	return ranges(out...)
}

func TestInRanges(t *testing.T) {
	both := rangesOf("10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32")
	for _, tt := range []struct {
		ranges *model.SourceRanges
		client string
		want   bool
	}{
		{nil, "203.0.113.1", true},
		{both, "9.255.255.255", false},
		{both, "10.0.0.0", true},
		{both, "10.255.255.255", true},
		{both, "11.0.0.0", false},
		{both, "192.0.2.77", true},
		{both, "2001:db8::1", true},
		{both, "2001:db7::1", false},
		{both, "2001:db9::", false},
		{rangesOf("10.0.0.0/8"), "::1", false},
		{rangesOf("::/0"), "10.0.0.1", false},
		{rangesOf("::/0"), "::", true},
		{&model.SourceRanges{}, "10.0.0.1", false},
	} {
		if got := inRanges(tt.ranges, netip.MustParseAddr(tt.client)); got != tt.want {
			t.Errorf("inRanges(%v, %s) = %t, want %t", tt.ranges, tt.client, got, tt.want)
		}
	}
}

// run executes a filter for a packet from client, as the kernel would.
func run(t *testing.T, program []unix.SockFilter, client netip.Addr) bool {
	t.Helper()
	source, offset, etherType := client.AsSlice(), uint32(ipv4Source), uint32(unix.ETH_P_IP)
	if client.Is6() {
		offset, etherType = ipv6Source, unix.ETH_P_IPV6
	}
	var a uint32
	for pc := 0; pc < len(program); pc++ {
		i := program[pc]
		condition := false
		switch i.Code {
		case unix.BPF_LD | unix.BPF_H | unix.BPF_ABS:
			a = etherType
			continue
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.BigEndian.Uint32(source[i.K-offset:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			return i.K != filterDrop
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			condition = a == i.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			condition = a > i.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			condition = a >= i.K
		default:
			t.Fatalf("instruction %d has the unknown code %#x", pc, i.Code)
		}
		if condition {
			pc += int(i.Jt)
		} else {
			pc += int(i.Jf)
		}
	}
	t.Fatal("the filter ends without a verdict")
	return false
}

// The filter in the kernel and the look at accept agree, at the bounds of each prefix and elsewhere.
func TestSourceFilterAgreesWithInRanges(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		var prefixes []netip.Prefix
		for range n % 40 {
			prefixes = append(prefixes, randomPrefix(rnd))
		}
		r := ranges(prefixes...)
		program := sourceFilter(r)
		if program == nil {
			t.Fatalf("no filter for %d prefixes", len(r.Prefixes))
		}
		clients := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified(), randomPrefix(rnd).Addr()}
		for _, p := range r.Prefixes {
			clients = append(clients, p.Addr(), p.Addr().Prev(), lastAddr(p), lastAddr(p).Next())
		}
		for _, c := range clients {
			if !c.IsValid() {
				continue
			}
			if got, want := run(t, program, c), inRanges(r, c); got != want {
				t.Fatalf("%v from %v: filter keeps %t, want %t", c, r.Prefixes, got, want)
			}
		}
	}
}

// randomPrefix returns one near to others, so that some are adjacent.
func randomPrefix(rnd *rand.Rand) netip.Prefix {
	if rnd.IntN(2) == 0 {
		a := netip.AddrFrom4([4]byte{byte(rnd.IntN(2)) * 255, byte(rnd.IntN(256)), 0, byte(rnd.IntN(256))})
		return netip.PrefixFrom(a, rnd.IntN(33)).Masked()
	}
	a := [16]byte{0x20, 1, byte(rnd.IntN(3)), 15: byte(rnd.IntN(256))}
	a[rnd.IntN(16)] = byte(rnd.IntN(256))
	return netip.PrefixFrom(netip.AddrFrom16(a), rnd.IntN(129)).Masked()
}

// many returns n networks that are not adjacent.
func many(n int, v6 bool) *model.SourceRanges {
	var out []netip.Prefix
	for i := range n {
		if v6 {
			out = append(out, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 7), byte(i << 1), 9}), 48))
		} else {
			out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 7), byte(i << 1), 0}), 24))
		}
	}
	return &model.SourceRanges{Prefixes: out}
}

func TestSourceFilterIsBounded(t *testing.T) {
	for _, tt := range []struct {
		networks int
		v6, want bool
	}{{500, false, true}, {290, true, true}, {600, false, false}, {400, true, false}, {100_000, false, false}} {
		if got := sourceFilter(many(min(tt.networks, 30_000), tt.v6)) != nil; got != tt.want {
			t.Errorf("%d networks, IPv6 %t: filter %t, want %t", tt.networks, tt.v6, got, tt.want)
		}
	}
}

// dialFrom connects to addr from a local address.
func dialFrom(from netip.Addr, addr string, limit time.Duration) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: limit}
	return d.Dial("tcp", addr)
}

// briefly is enough for the kernel to answer over loopback, which it does before connect returns.
const briefly = 300 * time.Millisecond

// requireFilters skips a test where only root may have a filter on a TCP socket, and this is not root.
func requireFilters(t *testing.T) {
	t.Helper()
	l := newEdge(t, Options{})
	l.mustReconcile(t, service("web", model.TCP, 30001, unused()))
	for _, b := range l.listeners {
		err := setFilter(b.listener.(*tcpListener).listener, rangesOf("10.0.0.0/8"))
		switch {
		case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
			t.Skip("this kernel wants CAP_NET_ADMIN for a filter on a TCP socket")
		case err != nil:
			t.Fatal(err)
		}
	}
}

func TestTCPSourceRangesAreHeldToInSilence(t *testing.T) {
	requireFilters(t)
	t.Parallel()
	e := newEdge(t, Options{SourceRangesOnNodePorts: true})
	friend, foe := loopback(), loopback()
	svc := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	for _, tt := range []struct {
		name        string
		ranges      *model.SourceRanges
		friend, foe bool
	}{
		{"one", rangesOf(friend.String() + "/32"), true, false},
		{"the other", rangesOf(foe.String() + "/32"), false, true},
		{"both", rangesOf(friend.String()+"/32", foe.String()+"/32"), true, true},
		{"none", rangesOf("::/0"), false, false},
		{"no ranges", nil, true, true},
	} {
		svc.SourceRanges = tt.ranges
		e.mustReconcile(t, svc)
		for from, want := range map[netip.Addr]bool{friend: tt.friend, foe: tt.foe} {
			mustAnswer(t, from, e.at(30001), want, tt.name)
		}
	}
}

// mustAnswer expects a connection, or otherwise no answer at all.
func mustAnswer(t *testing.T, from netip.Addr, addr string, want bool, why string) {
	t.Helper()
	limit := briefly
	if want {
		limit = patience
	}
	c, err := dialFrom(from, addr, limit)
	var failure net.Error
	switch {
	case err == nil:
		c.Close()
		if !want {
			t.Errorf("%s: %v is let in", why, from)
		}
	case want || !errors.As(err, &failure) || !failure.Timeout():
		t.Errorf("%s: dial from %v = %v, want let in %t and else no answer", why, from, err, want)
	}
}

func TestTCPSourceRangesOfBothFamiliesOnOneSocket(t *testing.T) {
	requireFilters(t)
	t.Parallel()
	port := freePort(t)
	p := New(Options{SourceRangesOnNodePorts: true})
	t.Cleanup(p.Close)
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	for _, allowed := range []netip.Addr{v4, v6} {
		svc := service("web", model.TCP, port, tcpEcho(t, "a"))
		svc.SourceRanges = rangesOf(netip.PrefixFrom(allowed, allowed.BitLen()).String())
		if err := p.Reconcile(t.Context(), &model.Snapshot{Services: []model.Service{svc}}); err != nil {
			t.Fatal(err)
		}
		for _, from := range []netip.Addr{v4, v6} {
			mustAnswer(t, from, netip.AddrPortFrom(from, port).String(), from == allowed, "only "+allowed.String())
		}
	}
}

func TestTCPManySourceRangesAreHeldToByResets(t *testing.T) {
	e := newEdge(t, Options{SourceRangesOnNodePorts: true})
	svc := service("web", model.TCP, 30001, tcpEcho(t, "a"))
	friend := loopback()
	svc.SourceRanges = ranges(append(many(3000, false).Prefixes, netip.PrefixFrom(friend, 32))...)
	e.mustReconcile(t, svc)
	c, err := dialFrom(friend, e.at(30001), patience)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	mustBeReset(t, e.at(30001))
	if n := e.value(t, "sallyport_stream_denied_total"); n != 1 {
		t.Errorf("denied = %v, want 1", n)
	}
}

// mustBeReset connects, and expects that that is all.
func mustBeReset(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err == nil { // else the reset was here before dial returned
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("dial and read = %v, want connection reset", err)
	}
}

func TestSourceRangesHoldWhereTheyShould(t *testing.T) {
	svc := service("web", model.TCP, 30001, unused())
	svc.VIPs, svc.ExternalIPs, svc.ClusterIPs = []netip.Addr{loopback()}, []netip.Addr{loopback()}, []netip.Addr{loopback()}
	svc.SourceRanges = rangesOf("10.0.0.0/8")
	for _, nodePorts := range []bool{false, true} {
		e := newEdge(t, Options{SourceRangesOnNodePorts: nodePorts})
		for _, got := range e.entries(&svc, &svc.Ports[0]) {
			want := got.ip == svc.VIPs[0] || nodePorts && got.ip == e.ip
			if (got.ranges != nil) != want {
				t.Errorf("node ports %t: %v has ranges %t, want %t", nodePorts, got.address, got.ranges != nil, want)
			}
		}
	}
}

func BenchmarkInRanges(b *testing.B) {
	r := many(10_000, false)
	client := netip.MustParseAddr("100.20.30.40")
	b.ReportAllocs()
	for b.Loop() {
		inRanges(r, client)
	}
}
