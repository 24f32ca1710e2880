package rules

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
)

// notificationBuffer is how many bytes of notifications may wait to be read: about 10,000 rules changed at once. What is more is
// lost, which the kernel says.
const notificationBuffer = 16 << 20

// repairPause is for how long no more is read after something was found. Whatever keeps undoing what we write, such as a
// second Sallyport, must not have us do nothing else.
const repairPause = 200 * time.Millisecond

// Attributes of NFT_MSG_NEWGEN (enum nft_gen_attributes).
const (
	genPID  = 2
	genName = 3
)

// An nftSocket receives what the kernel tells of changes of rules (NFNLGRP_NFTABLES), except for those that we are making.
type nftSocket struct {
	mu     sync.Mutex
	socket *nl.NetlinkSocket // nil while Watch does not run
	muted  uint32            // the process whose changes are ours, 0 for none
}

// open subscribes in the network namespace of the calling thread.
func (s *nftSocket) open() (*nl.NetlinkSocket, error) {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of rules: %w", err)
	}
	_ = socket.SetReceiveBufferSize(notificationBuffer, true) // without it more is lost, which is then taken for drift
	s.mu.Lock()
	defer s.mu.Unlock()
	s.socket = socket
	return socket, s.filter()
}

func (s *nftSocket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.socket != nil {
		s.socket.Close()
	}
	s.socket = nil
}

// mute keeps out what a process of ours is about to do, until mute(0): that is megabytes where there are many services. A
// netlink socket's port id is that of the process that opens it first.
func (s *nftSocket) mute(pid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = uint32(pid)
	if s.socket == nil {
		return nil
	}
	return s.filter()
}

// filter sets a socket filter (classic BPF) on the sender of the first message of each batch: all of a batch are of one
// transaction.
func (s *nftSocket) filter() error {
	if s.muted == 0 {
		err := unix.SetsockoptInt(s.socket.GetFd(), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	const senderOffset = 12 // nlmsg_pid in struct nlmsghdr
	var sender [4]byte
	binary.NativeEndian.PutUint32(sender[:], s.muted) // BPF loads it as big endian
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: senderOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: binary.BigEndian.Uint32(sender[:])},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
	}
	return unix.SetsockoptSockFprog(s.socket.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// followNFT calls changed for each transaction of others that touches our rules, until ctx ends.
func (x *xtables) followNFT(ctx context.Context, socket *nl.NetlinkSocket, changed func()) error {
	defer context.AfterFunc(ctx, x.nft.close)()
	var found []finding
	for {
		messages, from, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			for _, w := range x.writers {
				x.drift.add("", finding{family: w.family, kind: driftUnknown})
			}
		case err != nil:
			return fmt.Errorf("follow changes of rules: %w", err)
		case from.Pid == nl.PidKernel:
			found = x.collect(messages, found)
		}
		if !x.drift.any() {
			continue
		}
		changed()
		select {
		case <-ctx.Done():
		case <-time.After(repairPause):
		}
	}
}

// collect adds to the drift what is found up to the last message of each transaction, and returns what is left.
func (x *xtables) collect(messages []syscall.NetlinkMessage, found []finding) []finding {
	for _, m := range messages {
		if f, ok := lost(m); ok && x.writer(f.family) != nil {
			found = append(found, f)
		}
		if by, ok := committed(m); ok && len(found) > 0 {
			x.drift.add(by, found...)
			found = nil
		}
	}
	return found
}

// lost says what a message tells of our rules. Others may make chains, and change rules that have nothing to do with ours.
func lost(m syscall.NetlinkMessage) (finding, bool) {
	attrs := nftAttributes(m)
	f := finding{table: attribute(attrs, unix.NFTA_TABLE_NAME)} // the first attribute of rules and chains too
	if f.table != "filter" && f.table != "nat" {
		return finding{}, false
	}
	switch m.Data[0] {
	case unix.NFPROTO_IPV4:
		f.family = plan.IPv4
	case unix.NFPROTO_IPV6:
		f.family = plan.IPv6
	default:
		return finding{}, false
	}
	switch m.Header.Type {
	case nftMessage(unix.NFT_MSG_DELTABLE):
		f.kind = driftTable
		return f, true
	case nftMessage(unix.NFT_MSG_DELCHAIN):
		f.kind, f.chain = driftChain, attribute(attrs, unix.NFTA_CHAIN_NAME)
		return f, strings.HasPrefix(f.chain, iptables.Prefix)
	case nftMessage(unix.NFT_MSG_NEWRULE):
		f.kind, f.chain = driftRules, attribute(attrs, unix.NFTA_RULE_CHAIN)
		return f, strings.HasPrefix(f.chain, iptables.Prefix)
	case nftMessage(unix.NFT_MSG_DELRULE):
		f.kind, f.chain = driftRules, attribute(attrs, unix.NFTA_RULE_CHAIN)
		if strings.HasPrefix(f.chain, iptables.Prefix) {
			return f, true
		}
		f.kind = driftHook
		return f, iptables.IsHooked(f.table, f.chain) && bytes.Contains(m.Data, []byte(iptables.Prefix)) // the target's name
	}
	return finding{}, false
}

// committed says who made a transaction, if m is what ends its notifications.
func committed(m syscall.NetlinkMessage) (by string, ok bool) {
	if m.Header.Type != nftMessage(unix.NFT_MSG_NEWGEN) {
		return "", false
	}
	attrs := nftAttributes(m)
	by = attribute(attrs, genName)
	for _, a := range attrs {
		if a.Attr.Type == genPID && len(a.Value) == 4 {
			by += fmt.Sprintf(" (pid %d)", binary.BigEndian.Uint32(a.Value))
		}
	}
	return by, true
}

func nftMessage(t uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | t }

// nftAttributes parses what follows struct nfgenmsg; nil for a message that is none of nf_tables.
func nftAttributes(m syscall.NetlinkMessage) []syscall.NetlinkRouteAttr {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
		return nil
	}
	attrs, err := nl.ParseRouteAttr(m.Data[nl.SizeofNfgenmsg:])
	if err != nil {
		return nil
	}
	return attrs
}

// attribute gives the value of a string attribute, or is empty.
func attribute(attrs []syscall.NetlinkRouteAttr, t uint16) string {
	for _, a := range attrs {
		if a.Attr.Type == t {
			name, _, _ := bytes.Cut(a.Value, []byte{0})
			return string(name)
		}
	}
	return ""
}
