package stream

import (
	"cmp"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

// A program cannot refuse to answer a TCP client: the kernel does so before accept. But it can have its listener ignore
// packets by a socket filter (SO_ATTACH_FILTER, socket(7)). So whoever is outside of a Service's source ranges is dropped, as in
// the kernel dataplanes, where the ranges fit into a filter, some 500 IPv4 or 300 IPv6 networks, and where the kernel permits it:
// some, such as 6.18.44, want CAP_NET_ADMIN for it if the socket is TCP's. Everywhere else, who accepts resets.
//
// The filter is a binary search among the addresses at which permission changes, in the classic BPF machine
// (Documentation/networking/filter.rst of Linux): one accumulator, 32-bit words, jumps forward only.

// maxFilter is the kernel's limit of instructions (BPF_MAXINSNS).
const maxFilter = 4096

// Where packets have what the filter looks at. Offsets from here on are negative, and so are modulo 2^32 (linux/filter.h).
const (
	ancillary      = 1<<32 - 0x1000   // SKF_AD_OFF
	networkHeader  = 1<<32 - 0x100000 // SKF_NET_OFF
	packetProtocol = ancillary + 0    // SKF_AD_PROTOCOL: the EtherType
	ipv4Source     = networkHeader + 12
	ipv6Source     = networkHeader + 8
)

// Verdicts of a filter: the bytes of the packet to keep.
const (
	filterDrop = 0
	filterKeep = 1<<32 - 1
)

// sourceFilter returns a filter that keeps the packets of those in the ranges; nil if it would be too long.
func sourceFilter(r *model.SourceRanges) []unix.SockFilter {
	v4, v6 := boundaries(r.Prefixes)
	if len(v4)+len(v6) > maxFilter {
		return nil
	}
	ipv4, ipv6 := search(v4, ipv4Source, false), search(v6, ipv6Source, false)
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: packetProtocol},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jt: 1},
		skip(len(ipv4)),
	}
	program = append(append(program, ipv4...), ipv6...)
	if len(program) > maxFilter {
		return nil
	}
	return program
}

// boundaries returns the addresses from which on permission is other than before, by family. It begins with none.
func boundaries(prefixes []netip.Prefix) (v4, v6 []netip.Addr) {
	for _, p := range prefixes {
		list := &v6
		if p.Addr().Is4() {
			list = &v4
		}
		if n := len(*list); n > 0 && (*list)[n-1] == p.Addr() {
			*list = (*list)[:n-1] // goes on where the one before ends
		} else {
			*list = append(*list, p.Addr())
		}
		if end := lastAddr(p).Next(); end.IsValid() {
			*list = append(*list, end)
		}
	}
	return v4, v6
}

// lastAddr returns the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b) // it has the length of an address
	return last
}

// search returns the code that decides about the source address at the offset, by how many of the bounds it has reached.
// permitted says what holds below the first one.
func search(bounds []netip.Addr, source uint32, permitted bool) []unix.SockFilter {
	if len(bounds) == 0 {
		verdict := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: filterDrop}
		if permitted {
			verdict.K = filterKeep
		}
		return []unix.SockFilter{verdict}
	}
	middle := len(bounds) / 2
	below := search(bounds[:middle], source, permitted)
	above := search(bounds[middle+1:], source, permitted != (middle%2 == 0)) // changed middle+1 times
	code := append(ifReached(bounds[middle], source), skip(len(below)))
	return append(append(code, below...), above...)
}

// skip leaves out the next n instructions.
func skip(n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}
}

// ifReached executes the one instruction that follows it only if the source address at the offset is bound or higher. It
// compares word by word; those of zeros at the end need no look.
func ifReached(bound netip.Addr, source uint32) []unix.SockFilter {
	words := make([]uint32, 0, 4)
	for b := bound.AsSlice(); len(b) > 0; b = b[4:] {
		words = append(words, binary.BigEndian.Uint32(b))
	}
	for len(words) > 1 && words[len(words)-1] == 0 {
		words = words[:len(words)-1]
	}
	const load, compare = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_K
	var code []unix.SockFilter
	for i, word := range words {
		code = append(code, unix.SockFilter{Code: load, K: source + uint32(4*i)})
		left := uint8(3 * (len(words) - 1 - i)) // instructions for the words after this one, but for the last one's
		if left == 0 {
			code = append(code, unix.SockFilter{Code: compare | unix.BPF_JGE, K: word, Jf: 1})
			break
		}
		code = append(code,
			unix.SockFilter{Code: compare | unix.BPF_JGT, K: word, Jt: left},
			unix.SockFilter{Code: compare | unix.BPF_JEQ, K: word, Jf: left})
	}
	return code
}

// filterSources has the kernel ignore whoever is outside of the target's ranges, if it can: who accepts has to look, too.
func (l *tcpListener) filterSources(t *target) {
	err := setFilter(l.listener, t.ranges)
	switch log := l.proxy.opt.Log; {
	case errors.Is(err, unix.EPERM):
		l.proxy.unpermitted.Do(func() {
			log.Warn("clients outside of source ranges are reset, not ignored, as this kernel wants CAP_NET_ADMIN for a socket filter", "err", err)
		})
	case err != nil:
		log.Warn("clients outside of source ranges are reset, not ignored", "service", t.service, "err", err)
	}
}

func setFilter(l *net.TCPListener, r *model.SourceRanges) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = attach(int(fd), r) })
	return cmp.Or(controlErr, err)
}

// attach replaces the filter of a socket. It leaves none if the new one cannot be had: an old one would be wrong.
func attach(fd int, r *model.SourceRanges) error {
	var err error
	if r != nil {
		if program := sourceFilter(r); program != nil {
			err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
			if err == nil {
				return nil
			}
		}
	}
	none := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if errors.Is(none, unix.ENOENT) { // there was none
		none = nil
	}
	return cmp.Or(err, none)
}
