package nftables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes of NFT_MSG_NEWGEN (enum nft_gen_attributes).
const (
	genPID  = 2
	genName = 3
)

// notificationBuffer is how many bytes of notifications may wait to be read: about 10,000 rules changed at once. What is
// more is lost, which the kernel says.
const notificationBuffer = 16 << 20

// Changes receives what the kernel tells of changes of nftables, iptables-nft's included, except for those of one process that
// it is told: our own are megabytes where there are many services.
type Changes struct {
	mu     sync.Mutex
	socket *nl.NetlinkSocket // nil while it is not open
	muted  uint32            // the process whose changes are kept out, 0 for none
}

// A Change is one message of the kernel (NFNLGRP_NFTABLES).
type Change struct {
	Type   int   // unix.NFT_MSG_…
	Family uint8 // unix.NFPROTO_…
	Table  string
	Data   []byte // as it came, behind the netlink header

	attributes []syscall.NetlinkRouteAttr
}

// Open subscribes, in the network namespace of the calling thread.
func (c *Changes) Open() error {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("subscribe to changes of rules: %w", err)
	}
	_ = socket.SetReceiveBufferSize(notificationBuffer, true) // without it more is lost, which is then taken for a change
	c.mu.Lock()
	defer c.mu.Unlock()
	c.socket = socket
	return c.filter()
}

// Close ends Follow.
func (c *Changes) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket != nil {
		c.socket.Close()
	}
	c.socket = nil
}

// Mute keeps out what a process is about to do, until Mute(0). A netlink socket's port id is that of the process that opens
// it first.
func (c *Changes) Mute(pid int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.muted = uint32(pid)
	if c.socket == nil {
		return nil
	}
	return c.filter()
}

// filter sets a socket filter (classic BPF) on the sender of the first message of each batch: all of a batch are of one
// transaction.
func (c *Changes) filter() error {
	if c.muted == 0 {
		err := unix.SetsockoptInt(c.socket.GetFd(), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	const senderOffset = 12 // nlmsg_pid in struct nlmsghdr
	var sender [4]byte
	binary.NativeEndian.PutUint32(sender[:], c.muted) // BPF loads it as big endian
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: senderOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: binary.BigEndian.Uint32(sender[:])},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
	}
	return unix.SetsockoptSockFprog(c.socket.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// Follow gives each batch of messages to f, until ctx ends; none if so much changed at once that the kernel lost some. All
// messages of a transaction come before one of type NFT_MSG_NEWGEN.
func (c *Changes) Follow(ctx context.Context, f func([]Change)) error {
	c.mu.Lock()
	socket := c.socket
	c.mu.Unlock()
	if socket == nil {
		return nil
	}
	defer context.AfterFunc(ctx, c.Close)()
	for {
		messages, from, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			f(nil)
		case err != nil:
			return fmt.Errorf("follow changes of rules: %w", err)
		case from.Pid == nl.PidKernel:
			if batch := parse(messages); len(batch) > 0 {
				f(batch)
			}
		}
	}
}

// parse leaves out what is no message of nf_tables.
func parse(messages []syscall.NetlinkMessage) (batch []Change) {
	for _, m := range messages {
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(m.Data[nl.SizeofNfgenmsg:])
		if err != nil {
			continue
		}
		change := Change{Type: int(m.Header.Type & 0xff), Family: m.Data[0], Data: m.Data, attributes: attributes}
		if change.Type != unix.NFT_MSG_NEWGEN {
			change.Table = change.Attribute(unix.NFTA_TABLE_NAME) // the first attribute of all objects
		}
		batch = append(batch, change)
	}
	return batch
}

// Attribute gives the value of a string attribute, or is empty.
func (c Change) Attribute(t uint16) string {
	for _, a := range c.attributes {
		if a.Attr.Type&^unix.NLA_F_NESTED == t {
			name, _, _ := bytes.Cut(a.Value, []byte{0})
			return string(name)
		}
	}
	return ""
}

// By says which program made a transaction, if the change is its end.
func (c Change) By() (program string, isEnd bool) {
	if c.Type != unix.NFT_MSG_NEWGEN {
		return "", false
	}
	program = c.Attribute(genName)
	for _, a := range c.attributes {
		if a.Attr.Type == genPID && len(a.Value) == 4 {
			program += fmt.Sprintf(" (pid %d)", binary.BigEndian.Uint32(a.Value))
		}
	}
	return program, true
}
