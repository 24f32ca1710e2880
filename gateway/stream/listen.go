package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// anyAddress stands for all local addresses of both families.
var anyAddress netip.Addr

// An address is what a listener is bound to.
type address struct {
	protocol model.Protocol
	ip       netip.Addr // or anyAddress
	port     uint16
}

// String gives "TCP 192.0.2.1:80", or "TCP *:80" for all addresses.
func (a address) String() string {
	if a.ip == anyAddress {
		return fmt.Sprintf("%s *:%d", a.protocol, a.port)
	}
	return fmt.Sprintf("%s %v", a.protocol, netip.AddrPortFrom(a.ip, a.port))
}

// network adds the family to tcp or udp, because package net makes a socket for both families of an unspecified
// address of either.
func (a address) network(protocol string) string {
	switch {
	case a.ip == anyAddress:
		return protocol
	case a.ip.Unmap().Is4():
		return protocol + "4"
	default:
		return protocol + "6"
	}
}

// hostPort spells the address as package net wants it.
func (a address) hostPort() string {
	if a.ip == anyAddress {
		return ":" + strconv.Itoa(int(a.port))
	}
	return netip.AddrPortFrom(a.ip.Unmap(), a.port).String()
}

// A listener is an open service port.
type listener interface {
	serve()      // takes what arrives, until close
	aim(*target) // sends what arrives from now on elsewhere
	close()
}

// listen opens what w wants. The caller runs serve.
func (p *Proxy) listen(ctx context.Context, w want) (listener, error) {
	if w.protocol == model.UDP {
		return p.listenUDP(ctx, w)
	}
	return p.listenTCP(ctx, w)
}

// control is a net.ListenConfig.Control. It lets a socket be bound to an address that is none of this machine: that takes no
// privilege (IP_FREEBIND, ip(7)), unlike the route that leads its packets here.
func (e entry) control(network, _ string, raw syscall.RawConn) error {
	if !e.foreign {
		return nil
	}
	if strings.HasSuffix(network, "6") {
		return setOption(raw, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND)
	}
	return setOption(raw, unix.IPPROTO_IP, unix.IP_FREEBIND)
}

// setOption turns a socket option on.
func setOption(raw syscall.RawConn, level, option int) error {
	var err error
	controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
	return cmp.Or(controlErr, err)
}

// takeAll calls take, which waits for one client of a listener and hands it on, until the listener is closed. Other
// failures, such as for want of file descriptors, would repeat at once; the wait between them doubles from 5 ms to 1 s.
func (p *Proxy) takeAll(take func() error) {
	const first, longest = 5 * time.Millisecond, time.Second
	for wait := first; ; {
		err := take()
		switch {
		case err == nil:
			wait = first
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		p.opt.Log.Warn("listener failed", "err", err, "retry", wait)
		select {
		case <-p.stopping:
			return
		case <-time.After(wait):
			wait = min(2*wait, longest)
		}
	}
}

// advice says what to do about a failure to listen, as a clause to append, or nothing.
func advice(err error) string {
	for _, known := range []struct {
		errno  syscall.Errno
		remedy string
	}{
		{syscall.EADDRINUSE, "stop the program that has the port (ss -lnp shows it), or give the Service another port"},
		{syscall.EACCES, "give sallyport CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start"},
		{syscall.EADDRNOTAVAIL, "add the address to an interface of this machine: userspace serves local addresses only"},
		{syscall.EMFILE, "raise the limit of open files (LimitNOFILE, ulimit -n)"},
	} {
		if errors.Is(err, known.errno) {
			return "; " + known.remedy
		}
	}
	return ""
}
