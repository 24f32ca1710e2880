package main

import (
	"errors"
	"fmt"
	"io"
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

// connect returns the time that the handshake took. EINTR means that a signal of the runtime cut it short (signal(7): a socket with
// a time limit is not tried again by the kernel): the socket is of no use, and the time says nothing.
func (s socket) connect(to netip.AddrPort) (time.Duration, error) {
	address := &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	start := time.Now()
	err := unix.Connect(int(s), address)
	return time.Since(start), err
}

// read returns the address that the endpoint says it was reached at.
func (s socket) read() (netip.Addr, error) {
	var b [4]byte
	err := s.readFull(b[:])
	return netip.AddrFrom4(b), err
}

// readFull fills b, whatever signals come.
func (s socket) readFull(b []byte) error {
	for len(b) > 0 {
		switch n, err := unix.Read(int(s), b); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			b = b[n:]
		}
	}
	return nil
}

// echo sends a byte through an established connection and waits for it to come back.
func (s socket) echo() error {
	b := []byte{askEcho}
	if _, err := unix.Write(int(s), b); err != nil {
		return err
	}
	return s.readFull(b)
}

// dial opens a socket and connects it, again if a signal came between.
func dial(source netip.Addr, to netip.AddrPort, within time.Duration) (socket, time.Duration, error) {
	for {
		s, err := open(source, within)
		if err != nil {
			return 0, 0, err
		}
		took, err := s.connect(to)
		if err == nil {
			return s, took, nil
		}
		s.close()
		if !errors.Is(err, unix.EINTR) {
			return 0, 0, fmt.Errorf("connect %v to %v: %w", source, to, err)
		}
	}
}

// ask connects and returns the endpoint that answers. It runs in the client's network namespace.
func ask(source netip.Addr, to netip.AddrPort, within time.Duration) (netip.Addr, error) {
	s, _, err := dial(source, to, within)
	if err != nil {
		return netip.Addr{}, err
	}
	defer s.close()
	return s.read()
}

// warmUp is how many connections go before those that are timed.
const warmUp = 10

// timeConnects opens and resets n connections, one after the other, and returns how long each took to be established.
func (s *site) timeConnects(e *edgeHost, to netip.AddrPort, n int) (took []time.Duration, err error) {
	took = make([]time.Duration, 0, n)
	err = s.client.Do(func() error {
		for i := range n + warmUp {
			socket, d, err := dial(e.source, to, patience)
			if err != nil {
				return fmt.Errorf("through %s: %w", e.Name, err)
			}
			socket.close()
			if i >= warmUp {
				took = append(took, d)
			}
		}
		return nil
	})
	return took, err
}
