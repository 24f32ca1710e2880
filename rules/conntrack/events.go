package conntrack

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// eventBuffer is how many bytes of notifications may wait to be read: some 20,000. The kernel removes entries that have
	// timed out many at a time.
	eventBuffer = 32 << 20
	// eventSize is more than a notification has: it is of one flow.
	eventSize = 8 << 10
)

// Offset and addresses of classic BPF (linux/filter.h).
const (
	skfAdNlattr = 0xfffff000 + 12 // SKF_AD_OFF + SKF_AD_NLATTR: the offset of the attribute X at or after A, or 0
	bpfTax      = unix.BPF_MISC | unix.BPF_TAX
)

// events are the ends of flows, as the kernel tells of them.
type events struct{ socket *os.File }

// listen subscribes to the ends of flows that have the mark (NFNLGRP_CONNTRACK_DESTROY), in the network namespace of the
// calling thread.
func listen(mark, mask uint32) (*events, error) {
	socket, fd, err := open()
	if err != nil {
		return nil, err
	}
	if err := filterMark(fd, mark, mask); err != nil {
		socket.Close()
		return nil, fmt.Errorf("filter the ends of flows: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer) // with less, more is lost, which is counted
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_CONNTRACK_DESTROY - 1)}); err != nil {
		socket.Close()
		return nil, fmt.Errorf("subscribe to the ends of flows: %w", err)
	}
	return &events{socket}, nil
}

// filterMark has the kernel leave out, before they take room in the socket, notifications of flows that have another mark.
func filterMark(fd int, mark, mask uint32) error {
	program := []unix.SockFilter{
		{Code: unix.BPF_LDX | unix.BPF_IMM, K: nl.CTA_MARK},
		{Code: unix.BPF_LD | unix.BPF_IMM, K: unix.SizeofNlMsghdr + nl.SizeofNfgenmsg},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: skfAdNlattr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 4}, // no mark: leave out
		{Code: bpfTax},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_IND, K: unix.SizeofNlAttr},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: mark, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// follow calls ended for each flow that ends, until ctx ends, and lost when notifications did not fit into the socket. It
// allocates nothing for a flow, which is valid until ended returns.
func (e *events) follow(ctx context.Context, ended func(*flow), lost func()) error {
	if err := e.socket.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("follow the ends of flows: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = e.socket.SetReadDeadline(time.Unix(1, 0)) })()
	var f flow
	b := make([]byte, eventSize)
	decode := func(_ header, message []byte) {
		if f.decode(message) {
			ended(&f)
		}
	}
	for {
		n, err := e.socket.Read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case err != nil:
			return fmt.Errorf("follow the ends of flows: %w", err)
		default:
			messages(b[:n], decode)
		}
	}
}

func (e *events) close() { e.socket.Close() }
