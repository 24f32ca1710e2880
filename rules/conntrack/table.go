package conntrack

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What ctnetlink has (linux/netfilter/nfnetlink_conntrack.h) and package nl has not.
const (
	msgGetStats = 5 // IPCTNL_MSG_CT_GET_STATS

	ctaMarkMask = 21 // CTA_MARK_MASK
	ctaFilter   = 25 // CTA_FILTER, since Linux 5.8

	ctaCountersPackets, ctaCountersBytes     = 1, 2 // enum ctattr_counters
	ctaFilterOrigFlags, ctaFilterReplyFlags  = 1, 2 // enum ctattr_filter
	ctaStatsGlobalEntries, ctaStatsGlobalMax = 1, 2 // enum ctattr_stats_global

	filterProtoNum = 1 << 3 // CTA_FILTER_F_CTA_PROTO_NUM
)

// A table is the kernel's connection tracking table, of the network namespace in which it was opened.
type table struct{ querier }

func openTable() (*table, error) {
	socket, _, err := open()
	if err != nil {
		return nil, err
	}
	return &table{querier{socket: socket, b: make([]byte, answerSize)}}, nil
}

func (t *table) close() { t.socket.Close() }

func request(command, flags int, family uint8, attrs ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|command, flags)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	for _, a := range attrs {
		r.AddData(a)
	}
	return r
}

// marked calls f for each flow that has the mark. The kernel leaves out the others.
func (t *table) marked(mark, mask uint32, f func(*flow)) error {
	return t.dump(unix.AF_UNSPEC, func(fl *flow) {
		if fl.mark&mask == mark {
			f(fl)
		}
	}, nl.NewRtAttr(nl.CTA_MARK, nl.BEUint32Attr(mark)), nl.NewRtAttr(ctaMarkMask, nl.BEUint32Attr(mask)))
}

// ofUDP calls f for each flow of UDP. The kernel leaves out the others since Linux 5.8.
func (t *table) ofUDP(f func(*flow)) error {
	original := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	original.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil).AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(filterProtoNum))
	filter.AddRtAttr(ctaFilterReplyFlags, nl.Uint32Attr(0))
	for _, family := range [...]uint8{unix.AF_INET, unix.AF_INET6} {
		err := t.dump(family, func(fl *flow) {
			if fl.original.protocol == unix.IPPROTO_UDP {
				f(fl)
			}
		}, original, filter)
		if err != nil {
			return err
		}
	}
	return nil
}

// dump reads the table. The flow is valid until f returns.
func (t *table) dump(family uint8, f func(*flow), filter ...nl.NetlinkRequestData) error {
	var fl flow
	err := t.ask(request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, family, filter...), func(message []byte) {
		if fl.decode(message) {
			f(&fl)
		}
	})
	if err != nil {
		return fmt.Errorf("read the connection tracking table: %w", err)
	}
	return nil
}

// A doomed is what it takes to delete a flow, and no other one that has since got its place.
type doomed struct {
	family   uint8
	original []byte
	id       uint32
	zone     uint16
}

func doom(f *flow) doomed {
	family := uint8(unix.AF_INET)
	if f.original.dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	return doomed{family, append([]byte(nil), f.rawOriginal...), f.id, f.zone}
}

// delete deletes an entry, if it is still there.
func (t *table) delete(d doomed) error {
	attrs := []nl.NetlinkRequestData{
		nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, d.original),
		nl.NewRtAttr(nl.CTA_ID, nl.BEUint32Attr(d.id)),
	}
	if d.zone != 0 {
		attrs = append(attrs, nl.NewRtAttr(nl.CTA_ZONE, nl.BEUint16Attr(d.zone)))
	}
	err := t.ask(request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, d.family, attrs...), func([]byte) {})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete an entry of connection tracking: %w", err)
	}
	return nil
}

// usage returns how many entries there are in this network namespace, and how many there may be (since Linux 4.18; or 0).
func (t *table) usage() (entries, limit uint32, err error) {
	err = t.ask(request(msgGetStats, unix.NLM_F_ACK, unix.AF_UNSPEC), func(message []byte) {
		if len(message) >= nl.SizeofNfgenmsg {
			value := message[nl.SizeofNfgenmsg:]
			entries, limit = uint32(number(nested(value, ctaStatsGlobalEntries))), uint32(number(nested(value, ctaStatsGlobalMax)))
		}
	})
	if err != nil {
		return 0, 0, fmt.Errorf("read the number of entries of connection tracking: %w", err)
	}
	return entries, limit, nil
}
