package conntrack

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// message is a flow as the kernel writes it.
func message(f flow) []byte {
	const nested = unix.NLA_F_NESTED
	m := (&nl.Nfgenmsg{NfgenFamily: unix.AF_INET}).Serialize()
	add := func(a *nl.RtAttr) { m = append(m, a.Serialize()...) }
	for _, direction := range []struct {
		attr int
		tuple
	}{{nl.CTA_TUPLE_ORIG, f.original}, {nl.CTA_TUPLE_REPLY, f.reply}} {
		a := nl.NewRtAttr(nested|direction.attr, nil)
		ip := a.AddRtAttr(nested|nl.CTA_TUPLE_IP, nil)
		src, dst := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
		if direction.dst.Addr().Is6() {
			src, dst = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
		}
		ip.AddRtAttr(src, direction.src.Addr().AsSlice())
		ip.AddRtAttr(dst, direction.dst.Addr().AsSlice())
		proto := a.AddRtAttr(nested|nl.CTA_TUPLE_PROTO, nil)
		proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{direction.protocol})
		proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(direction.src.Port()))
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(direction.dst.Port()))
		add(a)
	}
	if f.tcpState != 0 {
		a := nl.NewRtAttr(nested|nl.CTA_PROTOINFO, nil)
		a.AddRtAttr(nested|nl.CTA_PROTOINFO_TCP, nil).AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, []byte{f.tcpState})
		add(a)
	}
	add(nl.NewRtAttr(nl.CTA_MARK, nl.BEUint32Attr(f.mark)))
	add(nl.NewRtAttr(nl.CTA_ID, nl.BEUint32Attr(f.id)))
	add(nl.NewRtAttr(nl.CTA_ZONE, nl.BEUint16Attr(f.zone)))
	for attr, c := range map[int]counter{nl.CTA_COUNTERS_ORIG: f.in, nl.CTA_COUNTERS_REPLY: f.out} {
		a := nl.NewRtAttr(nested|attr, nil)
		a.AddRtAttr(ctaCountersPackets, nl.BEUint64Attr(c.packets))
		a.AddRtAttr(ctaCountersBytes, nl.BEUint64Attr(c.bytes))
		add(a)
	}
	return m
}

// flowOf is a flow of a client to dst, answered from src.
func flowOf(protocol uint8, dst, src string) flow {
	client := netip.MustParseAddrPort("192.0.2.9:40000")
	if netip.MustParseAddrPort(dst).Addr().Is6() {
		client = netip.MustParseAddrPort("[2001:db8::9]:40000")
	}
	return flow{
		original: tuple{client, netip.MustParseAddrPort(dst), protocol},
		reply:    tuple{netip.MustParseAddrPort(src), client, protocol},
	}
}

func TestDecode(t *testing.T) {
	tcp := flowOf(unix.IPPROTO_TCP, "198.51.100.10:80", "10.1.0.2:8080")
	tcp.mark, tcp.id, tcp.tcpState = 0x53000001, 0xdeadbeef, nl.TCP_CONNTRACK_ESTABLISHED
	tcp.in, tcp.out = counter{3, 180}, counter{2, 1 << 40}
	udp := flowOf(unix.IPPROTO_UDP, "[2001:db8:1::a]:53", "[2001:db8:2::2]:5353")
	udp.zone = 7
	for _, want := range []flow{tcp, udp} {
		var got flow
		if !got.decode(message(want)) {
			t.Errorf("%v is not read as a flow", want.original)
		}
		if got.rawOriginal == nil {
			t.Errorf("%v: the original tuple is not there to delete it by", want.original)
		}
		if got.rawOriginal = nil; !equal(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

func equal(a, b flow) bool {
	return a.original == b.original && a.reply == b.reply && a.mark == b.mark && a.id == b.id && a.zone == b.zone &&
		a.tcpState == b.tcpState && a.in == b.in && a.out == b.out
}

func TestDecodeAllocatesNothing(t *testing.T) {
	m := message(flowOf(unix.IPPROTO_TCP, "198.51.100.10:80", "10.1.0.2:8080"))
	var f flow
	if n := testing.AllocsPerRun(100, func() { f.decode(m) }); n != 0 {
		t.Errorf("%v allocations a flow", n)
	}
}

func TestOpen(t *testing.T) {
	for state, want := range map[uint8]bool{
		0: true, nl.TCP_CONNTRACK_SYN_SENT: true, nl.TCP_CONNTRACK_ESTABLISHED: true, nl.TCP_CONNTRACK_CLOSE_WAIT: true,
		nl.TCP_CONNTRACK_TIME_WAIT: false, nl.TCP_CONNTRACK_CLOSE: false,
	} {
		if got := (&flow{tcpState: state}).isOpen(); got != want {
			t.Errorf("state %d: open is %v", state, got)
		}
	}
}

// Whatever is cut off or wrong, nothing is read beyond the message.
func FuzzDecode(f *testing.F) {
	whole := message(flowOf(unix.IPPROTO_UDP, "[2001:db8:1::a]:53", "[2001:db8:2::2]:5353"))
	for n := range len(whole) + 1 {
		f.Add(whole[:n])
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		var got flow
		if got.decode(m) && !got.original.dst.IsValid() {
			t.Errorf("a flow without destination: %+v", got)
		}
		messages(m, func(_ header, inner []byte) { got.decode(inner) })
	})
}
