package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds a connection that is expected to come about.
const patience = 2 * time.Second

// A socket is a blocking TCP socket. Connections are timed without the runtime's poller, which costs more than what is measured.
type socket int

// open makes a socket that sends from source and gives up after so long. It belongs to the network namespace of the calling thread.
func open(source netip.Addr, within time.Duration) (socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	limit := unix.NsecToTimeval(int64(within))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		// A reset at the end leaves no TIME_WAIT, which would use up the ports.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		// The port is chosen by connect: it may be shared with connections to other addresses.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: source.As4()}),
	)
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("prepare a socket of %v: %w", source, err)
	}
	return socket(fd), nil
}

func (s socket) close() { unix.Close(int(s)) }

// connect returns the time that the handshake took.
func (s socket) connect(to netip.AddrPort) (time.Duration, error) {
	address := &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	start := time.Now()
	err := unix.Connect(int(s), address)
	return time.Since(start), err
}

// read returns the address that the endpoint says it was reached at.
func (s socket) read() (netip.Addr, error) {
	var b [4]byte
	n, err := unix.Read(int(s), b[:])
	if err == nil && n != len(b) {
		err = fmt.Errorf("read %d bytes of an address", n)
	}
	return netip.AddrFrom4(b), err
}

// ask connects and returns the endpoint that answers. It runs in the client's network namespace.
func ask(source netip.Addr, to netip.AddrPort, within time.Duration) (netip.Addr, error) {
	s, err := open(source, within)
	if err != nil {
		return netip.Addr{}, err
	}
	defer s.close()
	if _, err := s.connect(to); err != nil {
		return netip.Addr{}, err
	}
	return s.read()
}

// warmUp is how many connections go before those that are timed.
const warmUp = 10

// timeConnects opens and resets n connections, one after the other, and returns how long each took to be established.
func (s *site) timeConnects(e *edgeHost, to netip.AddrPort, n int) (took []time.Duration, err error) {
	took = make([]time.Duration, 0, n)
	err = s.client.Do(func() error {
		for i := range n + warmUp {
			socket, err := open(e.source, patience)
			if err != nil {
				return err
			}
			d, err := socket.connect(to)
			socket.close()
			if err != nil {
				return fmt.Errorf("connect to %v through %s: %w", to, e.Name, err)
			}
			if i >= warmUp {
				took = append(took, d)
			}
		}
		return nil
	})
	return took, err
}
