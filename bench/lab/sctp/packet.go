// Package sctp speaks as much SCTP as it takes to see where a new association is sent: INIT, INIT ACK and ABORT (RFC 9260
// section 3.3), by hand on raw sockets, because a kernel that translates SCTP need not have sockets of it.
package sctp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Protocol is SCTP's number in the IP header.
const Protocol = 132

// Chunk types (RFC 9260 section 3.2).
const (
	chunkInit    = 1
	chunkInitAck = 2
	chunkAbort   = 6
)

const (
	commonHeader    = 12 // source port, destination port, verification tag, checksum
	chunkHeader     = 4  // type, flags, length
	initHeader      = 16 // initiate tag, window, outbound and inbound streams, initial TSN
	parameterHeader = 4  // type, length

	parameterCookie = 7 // state cookie: what its sender likes

	window  = 65536
	streams = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A packet is an SCTP packet with one chunk.
type packet struct {
	source, destination uint16
	tag                 uint32 // verification tag: the receiver's initiate tag
	chunk               byte
	initiate            uint32 // initiate tag: what the sender wants to see as tag; of INIT and INIT ACK
	cookie              string // of INIT ACK
}

// marshal gives p's bytes, with the checksum.
func (p packet) marshal() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.source)
	b = binary.BigEndian.AppendUint16(b, p.destination)
	b = binary.BigEndian.AppendUint32(b, p.tag)
	b = append(b, 0, 0, 0, 0)
	body := p.body()
	b = append(b, p.chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(chunkHeader+len(body)))
	b = append(b, body...)
	for len(b)%4 != 0 { // the padding is not part of the length
		b = append(b, 0)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

func (p packet) body() []byte {
	if p.chunk == chunkAbort {
		return nil
	}
	b := binary.BigEndian.AppendUint32(nil, p.initiate)
	b = binary.BigEndian.AppendUint32(b, window)
	b = binary.BigEndian.AppendUint16(b, streams)
	b = binary.BigEndian.AppendUint16(b, streams)
	b = binary.BigEndian.AppendUint32(b, p.initiate) // initial TSN: any number
	if p.chunk == chunkInitAck {
		b = binary.BigEndian.AppendUint16(b, parameterCookie)
		b = binary.BigEndian.AppendUint16(b, uint16(parameterHeader+len(p.cookie)))
		b = append(b, p.cookie...)
	}
	return b
}

var (
	errShort    = errors.New("too short for an SCTP packet")
	errChecksum = errors.New("wrong checksum")
)

// parse reads a packet of which it looks at the first chunk only.
func parse(b []byte) (packet, error) {
	if len(b) < commonHeader+chunkHeader {
		return packet{}, errShort
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	zeroed := append([]byte(nil), b...)
	clear(zeroed[8:12])
	if crc32.Checksum(zeroed, castagnoli) != sum {
		return packet{}, errChecksum
	}
	p := packet{
		source: binary.BigEndian.Uint16(b), destination: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:]),
		chunk: b[commonHeader],
	}
	length := int(binary.BigEndian.Uint16(b[commonHeader+2:]))
	if length < chunkHeader || commonHeader+length > len(b) {
		return packet{}, fmt.Errorf("chunk of %d bytes in a packet of %d", length, len(b))
	}
	return p, p.parseBody(b[commonHeader+chunkHeader : commonHeader+length])
}

func (p *packet) parseBody(b []byte) error {
	if p.chunk != chunkInit && p.chunk != chunkInitAck {
		return nil
	}
	if len(b) < initHeader {
		return errShort
	}
	p.initiate = binary.BigEndian.Uint32(b)
	b = b[initHeader:]
	if len(b) >= parameterHeader && binary.BigEndian.Uint16(b) == parameterCookie {
		end := int(binary.BigEndian.Uint16(b[2:]))
		if end < parameterHeader || end > len(b) {
			return fmt.Errorf("cookie of %d bytes in a chunk with %d left", end, len(b))
		}
		p.cookie = string(b[parameterHeader:end])
	}
	return nil
}
