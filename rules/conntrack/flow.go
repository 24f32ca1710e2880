package conntrack

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A flow is an entry of the kernel's table.
type flow struct {
	original, reply tuple
	mark, id        uint32
	zone            uint16
	tcpState        uint8 // enum tcp_conntrack; 0 if not TCP
	in, out         counter
	rawOriginal     []byte // of the original tuple, as the kernel wrote it; valid as long as the message is
}

// A tuple is one direction of a flow.
type tuple struct {
	src, dst netip.AddrPort
	protocol uint8 // IPPROTO_*
}

// A counter is what went one way. It stays zero for a flow that began while net.netfilter.nf_conntrack_acct was 0.
type counter struct{ packets, bytes uint64 }

// isOpen is false for a TCP connection that has ended, of which the kernel keeps the entry for a while.
func (f *flow) isOpen() bool {
	return f.tcpState != nl.TCP_CONNTRACK_TIME_WAIT && f.tcpState != nl.TCP_CONNTRACK_CLOSE
}

// translated says whether the flow's destination is replaced.
func (f *flow) translated() bool { return f.reply.src != f.original.dst }

// decode reads a message of ctnetlink (linux/netfilter/nfnetlink_conntrack.h) without its struct nlmsghdr. It allocates
// nothing, and returns false for a message that has no flow.
func (f *flow) decode(message []byte) bool {
	*f = flow{}
	if len(message) < nl.SizeofNfgenmsg {
		return false
	}
	for rest := attributes(message[nl.SizeofNfgenmsg:]); rest.next(); {
		switch t, value := rest.attribute(); t {
		case nl.CTA_TUPLE_ORIG:
			f.rawOriginal = value
			f.original.decode(value)
		case nl.CTA_TUPLE_REPLY:
			f.reply.decode(value)
		case nl.CTA_PROTOINFO:
			f.tcpState = uint8(number(nested(nested(value, nl.CTA_PROTOINFO_TCP), nl.CTA_PROTOINFO_TCP_STATE)))
		case nl.CTA_MARK:
			f.mark = uint32(number(value))
		case nl.CTA_COUNTERS_ORIG:
			f.in.decode(value)
		case nl.CTA_COUNTERS_REPLY:
			f.out.decode(value)
		case nl.CTA_ID:
			f.id = uint32(number(value))
		case nl.CTA_ZONE:
			f.zone = uint16(number(value))
		}
	}
	return f.original.dst.IsValid() && f.reply.src.IsValid()
}

func (t *tuple) decode(value []byte) {
	ip, proto := nested(value, nl.CTA_TUPLE_IP), nested(value, nl.CTA_TUPLE_PROTO)
	t.protocol = uint8(number(nested(proto, nl.CTA_PROTO_NUM)))
	src, ok := netip.AddrFromSlice(nested(ip, nl.CTA_IP_V4_SRC))
	dst, _ := netip.AddrFromSlice(nested(ip, nl.CTA_IP_V4_DST))
	if !ok {
		src, _ = netip.AddrFromSlice(nested(ip, nl.CTA_IP_V6_SRC))
		dst, _ = netip.AddrFromSlice(nested(ip, nl.CTA_IP_V6_DST))
	}
	t.src = netip.AddrPortFrom(src, uint16(number(nested(proto, nl.CTA_PROTO_SRC_PORT))))
	t.dst = netip.AddrPortFrom(dst, uint16(number(nested(proto, nl.CTA_PROTO_DST_PORT))))
}

func (c *counter) decode(value []byte) {
	c.packets = number(nested(value, ctaCountersPackets))
	c.bytes = number(nested(value, ctaCountersBytes))
}

// attributes are netlink attributes, one after the other (struct nlattr).
type attributes []byte

// next says whether there is one left, which attribute then returns.
func (a *attributes) next() bool {
	return len(*a) >= unix.SizeofNlAttr && a.length() >= unix.SizeofNlAttr && a.length() <= len(*a)
}

func (a *attributes) length() int { return int(binary.NativeEndian.Uint16(*a)) }

// attribute takes off the first attribute.
func (a *attributes) attribute() (t uint16, value []byte) {
	n := a.length()
	t = binary.NativeEndian.Uint16((*a)[2:]) & nl.NLA_TYPE_MASK
	value = (*a)[unix.SizeofNlAttr:n]
	*a = (*a)[min(align(n), len(*a)):]
	return t, value
}

// align is NLMSG_ALIGN and NLA_ALIGN.
func align(n int) int { return (n + 3) &^ 3 }

// nested finds an attribute in the value of another one; nil if it is not there.
func nested(value []byte, t uint16) []byte {
	for rest := attributes(value); rest.next(); {
		if found, v := rest.attribute(); found == t {
			return v
		}
	}
	return nil
}

// number reads an integer of 1, 2, 4 or 8 bytes, big endian as all of ctnetlink's; 0 if there is none.
func number(value []byte) (n uint64) {
	if len(value) > 8 {
		return 0
	}
	for _, b := range value {
		n = n<<8 | uint64(b)
	}
	return n
}
