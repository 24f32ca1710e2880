package stream

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// A socket on all addresses must answer a client from the address that the client sent to, which the routing table
// need not choose. The kernel tells that address with each datagram, and takes it with each reply, in a control
// message: struct in_pktinfo (ip(7)) or struct in6_pktinfo (RFC 3542 section 6), which carries IPv4 addresses in
// mapped form on a socket for both families.

// maxPacketInfo holds the control message of either family, the only kind that is asked for.
var maxPacketInfo = unix.CmsgSpace(unix.SizeofInet6Pktinfo)

// Offsets of the fields.
const (
	pktinfo4Index   = 0  // ipi_ifindex
	pktinfo4SpecDst = 4  // ipi_spec_dst: the local address; taken as the source when sending
	pktinfo6Addr    = 0  // ipi6_addr
	pktinfo6Index   = 16 // ipi6_ifindex
)

// enablePacketInfo asks for the control messages.
func enablePacketInfo(network string, raw syscall.RawConn) error {
	if network == "udp4" {
		return setOption(raw, unix.IPPROTO_IP, unix.IP_PKTINFO)
	}
	return setOption(raw, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO)
}

// packetInfo returns the structure in a control message: one of the two sizes, or nil if it is neither.
func packetInfo(control []byte) []byte {
	if len(control) < unix.CmsgLen(0) {
		return nil
	}
	hdr, data, _, err := unix.ParseOneSocketControlMessage(control)
	switch {
	case err != nil:
		return nil
	case hdr.Level == unix.IPPROTO_IP && len(data) == unix.SizeofInet4Pktinfo,
		hdr.Level == unix.IPPROTO_IPV6 && len(data) == unix.SizeofInet6Pktinfo:
		return data
	default:
		return nil
	}
}

// localAddr returns the address of this machine that a datagram with the control message was sent to.
func localAddr(control []byte) netip.Addr {
	switch info := packetInfo(control); len(info) {
	case unix.SizeofInet4Pktinfo:
		return netip.AddrFrom4([4]byte(info[pktinfo4SpecDst:]))
	case unix.SizeofInet6Pktinfo:
		return netip.AddrFrom16([16]byte(info[pktinfo6Addr:])).Unmap()
	default:
		return netip.Addr{}
	}
}

// replyControl turns the control message of a datagram into the one for its replies, in place: the same address,
// and the interface left to the routing table, for the way back need not be the way here.
func replyControl(control []byte) []byte {
	switch info := packetInfo(control); len(info) {
	case unix.SizeofInet4Pktinfo:
		binary.NativeEndian.PutUint32(info[pktinfo4Index:], 0)
	case unix.SizeofInet6Pktinfo:
		binary.NativeEndian.PutUint32(info[pktinfo6Index:], 0)
	default:
		return nil
	}
	return control
}
