package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that we made (rtm_protocol; rt_protos leaves 83 free). "ip route show table all proto 83" lists them.
const routeProtocol = netlink.RouteProtocol(83)

// routeBatch is how many routes are changed in one system call. Each that is refused has an answer of its own, and all of these have
// room in the socket's buffer.
const routeBatch = 64

// A network is this machine's, as rtnetlink(7) has it, in the network namespace that it was opened in.
type network struct {
	*netlink.Handle // for all but our routes

	routes *nl.SocketHandle // for these
	port   uint32           // of that socket: the kernel tells others who made a change
}

// An ownRoute is one that is marked as ours.
type ownRoute struct {
	to      netip.Prefix
	gateway netip.Addr // for pods; the zero Addr for a VIP, which the kernel then takes for an address of this machine
	link    int        // for a VIP that is added, the index of the link for VIPs
}

func openNetwork() (*network, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n := &network{Handle: h, routes: &nl.SocketHandle{Socket: s}}
	if n.port, err = s.GetPid(); err != nil {
		n.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	// Lists of one table need not take in those of all others. Linux before 4.20 does not have that, and gives all.
	_ = errors.Join(h.SetStrictCheck(true), unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1))
	return n, nil
}

// Close lets go of its sockets.
func (n *network) Close() {
	n.Handle.Close()
	n.routes.Close()
}

// add makes routes. What it returns says for each of the list why the kernel refuses it, or is nil.
func (n *network) add(list []ownRoute, flags uint16) (refused []error, err error) {
	return n.change(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flags, list)
}

// remove removes routes. One that is gone already is not refused.
func (n *network) remove(list []ownRoute) (refused []error, err error) {
	refused, err = n.change(unix.RTM_DELROUTE, 0, list)
	for i, why := range refused {
		if errors.Is(why, unix.ESRCH) {
			refused[i] = nil
		}
	}
	return refused, err
}

func (n *network) change(kind, flags uint16, list []ownRoute) (refused []error, err error) {
	refused = make([]error, len(list))
	for first := 0; first < len(list); first += routeBatch {
		end := min(first+routeBatch, len(list))
		if err := n.send(kind, flags, list[first:end]); err != nil {
			return nil, fmt.Errorf("change routes: %w", err)
		}
		if err := n.receive(refused[first:end]); err != nil {
			return nil, fmt.Errorf("change routes: %w", err)
		}
	}
	return refused, nil
}

// send asks for an answer to the last message. The kernel answers others only when it refuses what they ask for.
func (n *network) send(kind, flags uint16, list []ownRoute) error {
	const longest = unix.SizeofNlMsghdr + unix.SizeofRtMsg + 2*(unix.SizeofRtAttr+16) // bytes of one message
	b := make([]byte, 0, len(list)*longest)
	for i, r := range list {
		n.routes.Seq++
		f := flags | unix.NLM_F_REQUEST
		if i == len(list)-1 {
			f |= unix.NLM_F_ACK
		}
		b = r.appendTo(b, kind, f, n.routes.Seq)
	}
	return unix.Sendto(n.routes.Socket.GetFd(), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive reads the answers to as many messages, which were the last to be sent.
func (n *network) receive(refused []error) error {
	first := n.routes.Seq - uint32(len(refused)) + 1
	for {
		messages, _, err := n.routes.Socket.Receive()
		if err != nil {
			return err
		}
		for _, m := range messages {
			i := int(int32(m.Header.Seq - first))
			if i < 0 || m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 { // an answer to something before
				continue
			}
			if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
				refused[i] = syscall.Errno(errno)
			}
			if m.Header.Seq == n.routes.Seq {
				return nil
			}
		}
	}
}

// appendTo appends the message that makes or removes the route: struct nlmsghdr, struct rtmsg and attributes (rtnetlink(7)).
func (r ownRoute) appendTo(b []byte, kind, flags uint16, seq uint32) []byte {
	start := len(b)
	header := unix.RtMsg{Family: unix.AF_INET, Dst_len: uint8(r.to.Bits()), Table: unix.RT_TABLE_MAIN, Protocol: uint8(routeProtocol), Type: unix.RTN_UNICAST}
	if r.to.Addr().Is6() {
		header.Family = unix.AF_INET6
	}
	if !r.gateway.IsValid() {
		header.Table, header.Type, header.Scope = unix.RT_TABLE_LOCAL, unix.RTN_LOCAL, unix.RT_SCOPE_HOST
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // the length, which comes later
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // the port, which the kernel knows
	b = append(b, (&nl.RtMsg{RtMsg: header}).Serialize()...)
	b = appendAttribute(b, unix.RTA_DST, r.to.Addr().AsSlice())
	if r.gateway.IsValid() {
		b = appendAttribute(b, unix.RTA_GATEWAY, r.gateway.AsSlice())
	}
	if r.link != 0 {
		b = appendAttribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(r.link)))
	}
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendAttribute takes values of whole words only, which need no padding.
func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(b, value...)
}

// vips lists the VIPs that the kernel takes for addresses of this machine.
func (n *network) vips(family int) (list []netip.Addr, err error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: n.routes}
	wanted := unix.RtMsg{Family: uint8(family), Table: unix.RT_TABLE_LOCAL, Protocol: uint8(routeProtocol), Type: unix.RTN_LOCAL}
	request.AddData(&nl.RtMsg{RtMsg: wanted})
	err = request.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE, func(m []byte) bool {
		if a, ok := vipOf(m, wanted); ok {
			list = append(list, a)
		}
		return true
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // there is no such table yet
		return nil, fmt.Errorf("list local routes: %w", err)
	}
	return list, nil
}

// vipOf reads the destination of a local route of ours. A list of many is read at each Reconcile, so that this makes no garbage.
func vipOf(m []byte, wanted unix.RtMsg) (a netip.Addr, ok bool) {
	if len(m) < unix.SizeofRtMsg {
		return a, false
	}
	header := nl.DeserializeRtMsg(m)
	if header.Family != wanted.Family || header.Table != wanted.Table || header.Protocol != wanted.Protocol || header.Type != wanted.Type {
		return a, false
	}
	for m = m[unix.SizeofRtMsg:]; len(m) >= unix.SizeofRtAttr; {
		length := int(binary.NativeEndian.Uint16(m))
		if length < unix.SizeofRtAttr || length > len(m) {
			return a, false
		}
		if binary.NativeEndian.Uint16(m[2:]) == unix.RTA_DST {
			a, ok = netip.AddrFromSlice(m[unix.SizeofRtAttr:length])
			return a, ok && int(header.Dst_len) == a.BitLen()
		}
		m = m[min(len(m), (length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return a, false
}

// follow subscribes to what the kernel tells of links, addresses, routes and forwarding, but for routes that are new, whoever made
// them, and for what was done by the socket for our own.
func (n *network) follow() (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_NETCONF,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of links, addresses and routes: %w", err)
	}
	const kindOffset, portOffset = 4, 12 // nlmsg_type and nlmsg_pid in struct nlmsghdr
	kind, port := binary.NativeEndian.AppendUint16(nil, unix.RTM_NEWROUTE), binary.NativeEndian.AppendUint32(nil, n.port)
	program := []unix.SockFilter{ // classic BPF, which loads as big endian
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: kindOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 3, K: uint32(binary.BigEndian.Uint16(kind))},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: binary.BigEndian.Uint32(port)},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	err = unix.SetsockoptSockFprog(s.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("leave our own out of changes of routes: %w", err)
	}
	return s, nil
}
