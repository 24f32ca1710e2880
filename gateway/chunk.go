package gateway

import (
	"io"
	"strconv"
)

const (
	chunkHead = len("ffffffff\r\n")
	chunkTail = len("\r\n")
)

// A bodyWriter writes a request's body. Data is read into the middle of a buffer, so that a chunk's frame can be put
// around it and one write takes it all.
type bodyWriter struct {
	w       io.Writer
	chunked bool
}

// room returns the part of buf to read data into.
func (b *bodyWriter) room(buf []byte) []byte {
	if b.chunked {
		return buf[chunkHead : len(buf)-chunkTail]
	}
	return buf
}

// write sends n bytes that were read into the room of buf.
func (b *bodyWriter) write(buf []byte, n int) error {
	if !b.chunked {
		_, err := b.w.Write(buf[:n])
		return err
	}
	var size [chunkHead]byte
	head := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
	start := chunkHead - len(head)
	copy(buf[start:], head)
	copy(buf[chunkHead+n:], "\r\n")
	_, err := b.w.Write(buf[start : chunkHead+n+chunkTail])
	return err
}

// finish sends the end of a body that is whole.
func (b *bodyWriter) finish(buf, trailers []byte) error {
	if !b.chunked {
		return nil
	}
	_, err := b.w.Write(appendTrailers(append(buf[:0], "0\r\n"...), trailers))
	return err
}
