package sctp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
)

// ErrAborted says that the server answered by ABORT: nobody listens on the port.
var ErrAborted = errors.New("answered by ABORT")

// Dial opens a socket to an address. ICMP errors of what is sent there are errors of its reads: syscall.ECONNREFUSED is a port
// unreachable. It needs CAP_NET_RAW.
func Dial(to netip.Addr) (*net.IPConn, error) {
	network := "ip6"
	if to.Is4() {
		network = "ip4"
	}
	return net.DialIP(fmt.Sprintf("%s:%d", network, Protocol), nil, &net.IPAddr{IP: to.AsSlice()})
}

// Init sends an INIT from a port to a port and returns the cookie of the INIT ACK. Answers of other addresses, to other
// ports, or with a wrong checksum or verification tag are not taken. ctx must have a deadline.
func Init(ctx context.Context, conn *net.IPConn, from, to uint16) (cookie string, err error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return "", errors.New("BUG: context without deadline")
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	out := packet{source: from, destination: to, chunk: chunkInit, initiate: rand.Uint32() | 1} // never 0
	if _, err := conn.Write(out.marshal()); err != nil {
		return "", err
	}
	return awaitAnswer(conn, out)
}

func awaitAnswer(conn *net.IPConn, out packet) (cookie string, err error) {
	buf := make([]byte, maxPacket)
	var passed []error // what else has come
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return "", errors.Join(append(passed, err)...)
		}
		in, err := parse(buf[:n])
		switch {
		case err != nil:
			passed = append(passed, err)
		case in.source != out.destination || in.destination != out.source || in.tag != out.initiate:
			passed = append(passed, fmt.Errorf("packet from port %d to %d with tag %x", in.source, in.destination, in.tag))
		case in.chunk == chunkAbort:
			return "", ErrAborted
		case in.chunk == chunkInitAck:
			return in.cookie, nil
		}
	}
}
