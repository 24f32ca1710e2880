package rules

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// legacyInterval is how often iptables-legacy's tables, which the kernel tells nothing of, are looked at; legacyPause is the
// most that is waited after a look which took long.
const (
	legacyInterval = time.Second
	legacyPause    = 5 * time.Second
)

// Watch calls changed when something changes the machine's networks or our rules under us, until ctx ends: a link that goes
// down takes the routes to pods along, address configuration removes routes that it did not make, a node's network may
// come up after Sallyport, a firewall's reload flushes tables, someone turns forwarding off. Reconcile, which may run meanwhile, then makes
// good what is lost. Reconcile's own changes of rules and routes are not reported.
//
// It also counts connections as they end. Changes of rules are noticed at once with nft, with legacy within a second, or 5 where others change theirs all the time.
func (k *Kernel) Watch(ctx context.Context, changed func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	networks, err := k.net.follow()
	if err != nil {
		return err
	}
	g.Go(func() error { return followNetworks(ctx, networks, changed) })
	g.Go(func() error { return k.flows.Run(ctx) })
	err = k.rules.Watch(ctx, changed) // here: a goroutine's thread could be in another network namespace
	stop()
	return errors.Join(err, g.Wait())
}

// Watch follows nf_tables, or looks at ip_tables from time to time.
func (x *xtables) Watch(ctx context.Context, changed func()) error {
	if x.backend() == BackendLegacy {
		x.followLegacy(ctx, changed)
		return nil
	}
	return x.followNFT(ctx, changed)
}

func followNetworks(ctx context.Context, s *nl.NetlinkSocket, changed func()) error {
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

// matters says whether a message of rtnetlink(7) tells of a link that went up or down, of an address that is good beyond its link,
// of the loss of one of our routes, or of forwarding turned off.
func matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK:
		return len(m.Data) >= unix.SizeofIfInfomsg && nl.DeserializeIfInfomsg(m.Data).Change&unix.IFF_UP != 0
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return len(m.Data) >= unix.SizeofIfAddrmsg && nl.DeserializeIfAddrmsg(m.Data).Scope < unix.RT_SCOPE_LINK
	case unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(m.Data).Protocol == uint8(routeProtocol)
	case unix.RTM_NEWNETCONF:
		return forwardingOff(m.Data)
	default:
		return false
	}
}

// forwardingOff reads struct netconfmsg and what follows it (linux/netconf.h).
func forwardingOff(data []byte) bool {
	const (
		header, attrIndex, attrForwarding = 4, 1, 2 // sizeof(struct netconfmsg) with its padding, NETCONFA_IFINDEX, NETCONFA_FORWARDING

		all = -1 // NETCONFA_IFINDEX_ALL: the sysctl itself
	)
	if len(data) < header {
		return false
	}
	attrs, err := nl.ParseRouteAttr(data[header:])
	if err != nil {
		return false
	}
	values := map[uint16]int32{attrForwarding: 1}
	for _, a := range attrs {
		if len(a.Value) == 4 {
			values[a.Attr.Type] = int32(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return values[attrIndex] == all && values[attrForwarding] == 0
}
