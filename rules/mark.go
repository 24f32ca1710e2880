package rules

import "strconv"

// DefaultMark is the top byte of Sallyport's marks where Options.Mark names no other: 'S'.
const DefaultMark = 0x53

// A packet mark (fwmark) of Sallyport is laid out as
//
//	bits 31..24  Options.Mark: the mark is Sallyport's
//	bits 23..20  verdict
//	bits 19..0   hash slot: which endpoint was chosen
//
// It stands from nat PREROUTING (or OUTPUT) to nat POSTROUTING of a connection's first packet, which clears it:
// a packet that is encapsulated afterwards must not carry it into its next round. HMARK overwrites all 32 bits,
// so verdict and owner come from its offset. Connections carry the top byte as their connmark, the other 24 bits
// of which are left to others.
const (
	verdictMasquerade = 1 << 20 // sent to an endpoint: masquerade
	verdictReject     = 2 << 20 // service port without destinations: refuse

	ownerBits   = 8
	slotBits    = 20
	ownerMask   = 0xff000000
	verdictMask = 0xfff00000
	wholeMask   = 0xffffffff
)

// owner is the connmark of our connections, and the base of our packet marks.
func (o Options) owner() uint32 { return uint32(o.Mark) << (32 - ownerBits) }

// markValue prints a mark and its mask as -m mark, -m connmark and the MARK targets read it.
func markValue(mark, mask uint32) string { return hexMark(mark) + "/" + hexMark(mask) }

func hexMark(mark uint32) string { return "0x" + strconv.FormatUint(uint64(mark), 16) }
