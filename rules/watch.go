package rules

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls changed when the machine's networks change under us, until ctx ends: a link that goes down takes the routes
// to pods along, address configuration removes routes that it did not make, and a node's network may come up after
// Sallyport. Reconcile then makes good what is lost. Changes of Reconcile's own can be among those reported.
func Watch(ctx context.Context, changed func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		return fmt.Errorf("subscribe to changes of links, addresses and routes: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	for {
		messages, from, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // there were more than the socket holds: something among them mattered
			changed()
		case err != nil:
			return fmt.Errorf("follow changes of links, addresses and routes: %w", err)
		case from.Pid == nl.PidKernel:
			for _, m := range messages {
				if matters(m) {
					changed()
				}
			}
		}
	}
}

// matters says whether a message of rtnetlink(7) tells of a link that went up or down, of an address, or of the loss of
// one of our routes.
func matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK:
		return len(m.Data) >= unix.SizeofIfInfomsg && nl.DeserializeIfInfomsg(m.Data).Change&unix.IFF_UP != 0
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	case unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(m.Data).Protocol == uint8(routeProtocol)
	default:
		return false
	}
}
