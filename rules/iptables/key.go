package iptables

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// A key is what a tree decides on, its bits left-aligned.
type key [16]byte

func addrKey(a netip.Addr) (k key) {
	copy(k[:], a.AsSlice())
	return k
}

func portKey(port uint16) (k key) {
	binary.BigEndian.PutUint16(k[:], port)
	return k
}

func (k key) port() uint16 { return binary.BigEndian.Uint16(k[:]) }

// addr is the address of a key, with n bits.
func (k key) addr(n int) netip.Addr {
	if n == 32 {
		return netip.AddrFrom4([4]byte(k[:4]))
	}
	return netip.AddrFrom16(k)
}

func (k key) bit(i int) bool { return k[i/8]>>(7-i%8)&1 == 1 }

// masked returns k with all but its first n bits zero.
func (k key) masked(n int) key {
	for i := range k {
		keep := min(max(n-8*i, 0), 8)
		k[i] &^= 0xff >> keep
	}
	return k
}

// commonBits counts the leading bits that a and b share.
func commonBits(a, b key) int {
	for i := range a {
		if d := a[i] ^ b[i]; d != 0 {
			return 8*i + bits.LeadingZeros8(d)
		}
	}
	return 8 * len(a)
}

// An item is what a tree leads to.
type item struct {
	key     key
	bits    int          // how much of key counts: the item stands for all keys that begin so
	rules   int          // how many rules its write appends
	index   int          // of what the item was made of
	entries []plan.Entry // that its rules are about
	group   uint8        // plan.Address.Group
	own     bool         // plan.Address.Own
}

// same says whether two items make the same rules.
func (i item) same(other item) bool {
	return i.key == other.key && i.bits == other.bits && i.group == other.group && i.own == other.own &&
		slices.EqualFunc(i.entries, other.entries, sameEntry)
}

func sameEntry(a, b plan.Entry) bool {
	return a.Protocol == b.Protocol && a.Port == b.Port && a.Restricted == b.Restricted &&
		(a.Target == b.Target || sameService(a.Service, b.Service) && samePort(a.Target, b.Target))
}

func samePort(a, b *plan.Target) bool {
	p, q := a.ServicePort, b.ServicePort
	return (p == q || p.Name == q.Name && p.Protocol == q.Protocol && p.Port == q.Port) && a.Sticky() == b.Sticky() &&
		slices.Equal(a.Destinations, b.Destinations)
}

func sameService(a, b *model.Service) bool {
	return a == b || a.Ref == b.Ref && samePointer(a.Affinity, b.Affinity) && samePointer(a.Limits, b.Limits) && sameRanges(a.SourceRanges, b.SourceRanges)
}

func samePointer[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

func sameRanges(a, b *model.SourceRanges) bool {
	return a == b || a != nil && b != nil && slices.Equal(a.Prefixes, b.Prefixes)
}

// byAddr is an address of a packet.
type byAddr struct {
	option string // -s or -d
	bits   int    // of an address
}

func (r *renderer) bySource() space      { return byAddr{"-s", r.Family.Bits()} }
func (r *renderer) byDestination() space { return byAddr{"-d", r.Family.Bits()} }

func (a byAddr) prefix(k key, n int) netip.Prefix {
	return netip.PrefixFrom(k.masked(n).addr(a.bits), n)
}

func (a byAddr) match(block []item) string {
	return a.option + " " + a.prefix(block[0].key, common(block)).String()
}

func (a byAddr) label(k key, n int) string { return a.prefix(k, n).String() }
func (a byAddr) length() int               { return a.bits }

// byPort is the destination port of a protocol, given in lower case.
type byPort string

func (p byPort) match(block []item) string {
	return portMatch(string(p), block[0].key.port(), block[len(block)-1].key.port())
}

func (p byPort) label(k key, n int) string {
	first := k.masked(n).port()
	return fmt.Sprintf("%d-%d", first, first|0xffff>>n)
}

func (p byPort) length() int { return 16 }

// portMatch matches a range of destination ports.
func portMatch(protocol string, first, last uint16) string {
	return "-p " + protocol + " -m " + protocol + " --dport " + portRange(first, last)
}

func portRange(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return strconv.Itoa(int(first)) + ":" + strconv.Itoa(int(last))
}

// bySlot is the hash slot in the packet mark.
type bySlot struct{}

func (bySlot) match(block []item) string {
	n := common(block)
	return isMarked(uint32(block[0].key.masked(n).port()), slotMask>>(slotBits-n)<<(slotBits-n))
}

func (bySlot) label(k key, n int) string { return fmt.Sprintf("%04x%x", k.masked(n).port(), n) }
func (bySlot) length() int               { return slotBits }

// prefixItems are items of one rule each.
func prefixItems(prefixes []netip.Prefix) []item {
	items := make([]item, len(prefixes))
	for i, p := range prefixes {
		items[i] = item{key: addrKey(p.Addr()), bits: p.Bits(), rules: 1, index: i}
	}
	return items
}

// merge covers addresses, which are ordered and distinct, exactly by the fewest prefixes.
func merge(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		p := netip.PrefixFrom(a, a.BitLen())
		for len(out) > 0 { // the last prefix may be the lower half of the block that p completes
			last := out[len(out)-1]
			whole := netip.PrefixFrom(last.Addr(), p.Bits()-1)
			if last.Bits() != p.Bits() || whole != whole.Masked() || !whole.Contains(p.Addr()) {
				break
			}
			out, p = out[:len(out)-1], whole
		}
		out = append(out, p)
	}
	return out
}

// shortPort is a space of ports with short labels, for trees with long names.
type shortPort struct{ space }

func (shortPort) label(k key, n int) string { return fmt.Sprintf("%04x%x", k.masked(n).port(), n) }
