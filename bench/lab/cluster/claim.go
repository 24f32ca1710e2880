package cluster

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A claim is the right to be the lab of one name on this machine. It is a socket in the abstract namespace (unix(7)):
// it leaves no file, exists once, goes with its process however that ends, and tells who holds it. Its holder takes
// requests on it (see remote.go).
type claim struct {
	listener *net.UnixListener
	requests *requests
}

func claimAddress(lab string) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: "@sallyport-lab/" + lab}
}

// errUp is returned by claimLab when another process, or this one, has the lab up.
var errUp = errors.New("the lab is already up")

// claimLab takes the claim of a lab.
func claimLab(lab string) (*claim, error) {
	listener, err := net.ListenUnix("unix", claimAddress(lab))
	if errors.Is(err, unix.EADDRINUSE) {
		pid, _ := owner(lab)
		return nil, fmt.Errorf("claim lab %s: %w, by process %d: stop it with lab down --name %s or choose another --name", lab, errUp, pid, lab)
	}
	if err != nil {
		return nil, fmt.Errorf("claim lab %s: %w", lab, err)
	}
	c := &claim{listener, newRequests()}
	go c.serve()
	return c, nil
}

// serve answers those who ask for the owner, or something of it. It ends with release.
func (c *claim) serve() {
	for {
		conn, err := c.listener.AcceptUnix()
		if err != nil {
			return
		}
		go c.requests.answer(conn) // bounded by its deadline and by the end of requests
	}
}

func (c *claim) release() error { return c.listener.Close() }

// owner returns the process that holds the lab's claim, 0 if none does.
func owner(lab string) (pid int, err error) {
	conn, err := net.DialUnix("unix", nil, claimAddress(lab))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the owner of lab %s: %w", lab, err)
	}
	defer conn.Close()
	cred, err := peer(conn)
	if err != nil {
		return 0, fmt.Errorf("ask for the owner of lab %s: %w", lab, err)
	}
	return int(cred.Pid), nil
}

// peer tells who is at the other end of conn.
func peer(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if ctl := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctl != nil {
		return nil, ctl
	}
	return cred, err
}
