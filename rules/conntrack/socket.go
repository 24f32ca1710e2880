package conntrack

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// answerTimeout is how long the kernel may take to go on with an answer, before it is held to be lost.
	answerTimeout = 10 * time.Second
	// answerSize is more than the kernel puts into one part of an answer (32 KiB).
	answerSize = 64 << 10
)

// open makes a netlink socket in the network namespace of the calling thread. The descriptor is the file's.
func open() (socket *os.File, fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, 0, fmt.Errorf("open a socket to connection tracking: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), fd, nil
}

// A querier asks the kernel, one question at a time. Package nl would do the same, at 300 bytes of garbage a flow.
type querier struct {
	socket *os.File

	mu  sync.Mutex
	seq uint32
	b   []byte
}

// ask sends a request and calls each with what is answered, until the answer is complete. A message is valid until each
// returns. The error is the kernel's (syscall.Errno), or says why there is no answer.
func (q *querier) ask(r *nl.NetlinkRequest, each func(message []byte)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seq++
	r.Seq = q.seq
	if _, err := q.socket.Write(r.Serialize()); err != nil {
		return err
	}
	var failed error
	for done := false; !done; {
		n, err := q.read()
		if err != nil {
			return err
		}
		messages(q.b[:n], func(h header, message []byte) {
			switch {
			case done || h.seq != q.seq: // the latter belongs to a question that was given up
			case h.kind == unix.NLMSG_DONE || h.kind == unix.NLMSG_ERROR:
				done, failed = true, cmp.Or(result(message), failed)
			case h.flags&unix.NLM_F_DUMP_INTR != 0:
				failed = errChanged
			default:
				each(message)
			}
		})
	}
	return failed
}

// errChanged is for an answer in which something may be missing.
var errChanged = errors.New("the table was made anew meanwhile")

func (q *querier) read() (n int, err error) {
	if err := q.socket.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, err
	}
	return q.socket.Read(q.b)
}

// result reads how an answer ends: struct nlmsgerr, or nothing.
func result(message []byte) error {
	if len(message) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(message)); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// A header is what matters here of struct nlmsghdr.
type header struct {
	kind, flags uint16
	seq         uint32
}

// messages calls f with each message in what was read from a netlink socket, without its header.
func messages(read []byte, f func(h header, message []byte)) {
	for len(read) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(read))
		if n < unix.SizeofNlMsghdr || n > len(read) {
			return
		}
		h := header{binary.NativeEndian.Uint16(read[4:]), binary.NativeEndian.Uint16(read[6:]), binary.NativeEndian.Uint32(read[8:])}
		f(h, read[unix.SizeofNlMsghdr:n])
		read = read[min(align(n), len(read)):]
	}
}
