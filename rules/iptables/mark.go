package iptables

import (
	"strconv"

	"sallyport/rules/plan"
)

// A packet mark (fwmark) of Sallyport is laid out as
//
//	bits 31..24  plan.Options.Mark: the mark is Sallyport's
//	bits 23..20  verdict: 1 sent to an endpoint, 5 as 1 and held to limits, 2 to be refused, 3 to be dropped
//	bits 19..16  plan.Address.Group, of which addresses the source is replaced by; 0 for the edge's own
//	bits 15..0   hash slot: which endpoint was chosen
//
// It stands from nat PREROUTING (or OUTPUT) to nat POSTROUTING of a connection's first packet, which clears it:
// a packet that is encapsulated afterwards must not carry it into its next round. HMARK overwrites all 32 bits,
// so all but the slot comes from its offset. Connections carry the top byte as their connmark, the other 24 bits
// of which are left to others.
const (
	verdictSent    = 1 << 20 // sent to an endpoint
	verdictReject  = 2 << 20 // service port without destinations: refuse
	verdictDrop    = 3 << 20 // from outside the source ranges: drop
	verdictLimited = 4 << 20 // beside verdictSent: the Service has limits
	verdictMask    = 0xfff00000

	// sentMask, with verdictSent, matches whether or not there are limits.
	sentMask = verdictMask &^ verdictLimited
	// refusedMask, with verdictReject, matches verdictDrop as well.
	refusedMask = plan.OwnerMask | verdictReject

	groupShift = 16
	groupMask  = plan.MaxGroups << groupShift

	slotBits  = 16
	slotMask  = plan.MaxSlots - 1
	wholeMask = 0xffffffff
)

// Accepting are the rules, as iptables-save prints them but for -A, by which other firewalls let our connections pass: of the
// first packet, and of all that follow.
func Accepting(chain string, o plan.Options) (first, next string) {
	return chain + " " + isMarked(o.Owner()|verdictSent, sentMask) + " -j ACCEPT",
		chain + " -m connmark --mark " + markValue(o.Owner(), plan.OwnerMask) + " -j ACCEPT"
}

// FirstPacket is the mark, and its mask, of the first packet of a connection that was sent to an endpoint.
func FirstPacket(o plan.Options) (mark, mask uint32) {
	return o.Owner() | verdictSent, sentMask
}

// isMarked matches the bits of the mask.
func isMarked(mark, mask uint32) string { return "-m mark --mark " + markValue(mark, mask) }

// setMark sets the whole mark.
func setMark(mark uint32) string { return "-j MARK --set-xmark " + markValue(mark, wholeMask) }

// markValue prints a mark and its mask as -m mark, -m connmark and the MARK targets read it.
func markValue(mark, mask uint32) string { return hexMark(mark) + "/" + hexMark(mask) }

func hexMark(mark uint32) string { return "0x" + strconv.FormatUint(uint64(mark), 16) }
