package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The PROXY protocol tells an endpoint who its client is
// (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt). Only TCP has it here: the specification leaves open how
// often a UDP client is to be introduced, and hardly a server understands any of the ways.

// Fields of version 2 (section 2.2).
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyVersion2  = 0x20 | 0x01 // version 2, command PROXY
	proxyTCP4      = 0x11        // AF_INET, STREAM
	proxyTCP6      = 0x21        // AF_INET6, STREAM
)

// earlyData is how much of the client's first data goes to the endpoint together with the header.
const earlyData = 1400

// appendProxyHeader appends the header that introduces a client, which has connected to the address edge, in the
// version 1 (text) or 2 (binary).
func appendProxyHeader(b []byte, version uint8, client, edge netip.AddrPort) []byte {
	if version == 1 {
		family := "TCP6"
		if client.Addr().Is4() {
			family = "TCP4"
		}
		return fmt.Appendf(b, "PROXY %s %s %s %d %d\r\n", family, client.Addr(), edge.Addr(), client.Port(), edge.Port())
	}
	from, to := client.Addr().AsSlice(), edge.Addr().AsSlice()
	family := byte(proxyTCP6)
	if client.Addr().Is4() {
		family = proxyTCP4
	}
	b = append(b, proxySignature...)
	b = append(b, proxyVersion2, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(from)+len(to)+4))
	b = append(append(b, from...), to...)
	b = binary.BigEndian.AppendUint16(b, client.Port())
	return binary.BigEndian.AppendUint16(b, edge.Port())
}

// introduce sends the header to the endpoint, and with it, in one segment, what the client has sent by now. It waits for
// nothing, as it may be the server who speaks first. It returns the number of the client's bytes that were sent.
func (r *relay) introduce(version uint8) (early int, err error) {
	b := appendProxyHeader(make([]byte, 0, earlyData), version, addrPort(r.client.RemoteAddr()), addrPort(r.client.LocalAddr()))
	header := len(b)
	if b, err = appendAvailable(b, r.client); err != nil {
		return 0, err
	}
	n, err := r.backend.Write(b)
	return max(n-header, 0), err
}

// appendAvailable fills b up with what c has received, if anything.
func appendAvailable(b []byte, c *net.TCPConn) ([]byte, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return b, err
	}
	n, readErr := 0, error(nil)
	err = raw.Read(func(fd uintptr) bool {
		n, readErr = unix.Read(int(fd), b[len(b):cap(b)])
		return true // also if there is nothing
	})
	switch {
	case err != nil:
		return b, err
	case errors.Is(readErr, unix.EAGAIN):
		return b, nil
	case readErr != nil: // a reset, which the socket tells once only
		return b, readErr
	default:
		return b[:len(b)+n], nil
	}
}

// addrPort returns the address of one side of a TCP connection, IPv4 addresses as such and without a zone: both mean
// nothing to others.
func addrPort(a net.Addr) netip.AddrPort {
	at := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(plain(at.Addr()), at.Port())
}

// plain returns the address without what depends on the socket that it was seen by.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
