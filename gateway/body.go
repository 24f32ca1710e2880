package gateway

import (
	"cmp"
	"errors"
	"io"
	"sync"
)

// errChunk is the reason why a chunked body is given up.
var errChunk = errors.New("malformed chunked body")

const (
	maxChunkLine = 256     // bytes of a chunk's size and extensions
	maxTrailers  = 8 << 10 // bytes of a trailer section
)

// A bodyReader reads a message's body from what follows the header. It never takes a byte beyond the body's end, and
// it ends with io.EOF only if the body is whole: with io.ErrUnexpectedEOF if the connection ended before.
type bodyReader struct {
	src      io.Reader
	framing  framing
	left     int64  // bytes left of the body, or of the present chunk
	inChunks bool   // a chunk has been read before, so its end is still to come
	ended    bool   // the body is whole
	trailers []byte // trailer section as it came, without the empty line
	one      [1]byte
}

// reset prepares for a body. The storage of trailers is kept.
func (b *bodyReader) reset(src io.Reader, f framing, length int) {
	*b = bodyReader{src: src, framing: f, left: int64(length), ended: f == framingNone, trailers: b.trailers[:0]}
	if f == framingChunked {
		b.left = 0
	}
}

// Read implements io.Reader.
func (b *bodyReader) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	if b.framing == framingChunked && b.left == 0 {
		if err := b.nextChunk(); err != nil || b.ended {
			return 0, cmp.Or(err, io.EOF)
		}
	}
	if b.framing != framingClose && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.src.Read(p)
	return n, b.took(int64(n), err)
}

// took accounts for n bytes that were read and gives the error of the source its meaning for the body.
func (b *bodyReader) took(n int64, err error) error {
	if b.framing == framingClose {
		b.ended = errors.Is(err, io.EOF)
		return err
	}
	b.left -= n
	if b.framing == framingLength && b.left == 0 {
		b.ended = true
		return nil
	}
	if b.left == 0 && n > 0 {
		return nil // the end of a chunk: an error will come again
	}
	return unexpected(err)
}

// nextChunk reads up to the data of the next chunk (RFC 9112 7.1), or to the end of the body.
func (b *bodyReader) nextChunk() error {
	if b.inChunks {
		if err := b.crlf(); err != nil {
			return err
		}
	}
	b.inChunks = true
	size, digits := int64(0), 0
	space, extension := false, false // the part of the line after the size
	for range maxChunkLine {
		c, err := b.byte()
		switch v := unhex(c); {
		case err != nil:
			return err
		case c == '\r':
			return b.chunkStarts(size, digits)
		case extension && textByte(c):
		case c == ';':
			extension = true
		case c == ' ', c == '\t':
			space = true
		case v > 15, space, digits == 15:
			return errChunk
		default:
			size, digits = size<<4|int64(v), digits+1
		}
	}
	return errChunk
}

// chunkStarts comes after the CR of a chunk's first line.
func (b *bodyReader) chunkStarts(size int64, digits int) error {
	c, err := b.byte()
	switch {
	case err != nil:
		return err
	case c != '\n' || digits == 0:
		return errChunk
	case size == 0:
		return b.readTrailers()
	}
	b.left = size
	return nil
}

// readTrailers reads the trailer section, which may be empty, and the empty line that ends the body.
func (b *bodyReader) readTrailers() error {
	for start := 0; ; {
		c, err := b.byte()
		if err != nil {
			return err
		}
		if len(b.trailers) == maxTrailers {
			return errChunk
		}
		b.trailers = append(b.trailers, c)
		if c != '\n' {
			continue
		}
		if line := b.trailers[start:]; string(line) == "\r\n" {
			b.trailers, b.ended = b.trailers[:start], true
			return nil
		}
		if _, value, _, problem := nextField(b.trailers[start:]); problem != nil || !isText(value) {
			return errChunk
		}
		start = len(b.trailers)
	}
}

func (b *bodyReader) crlf() error {
	for _, want := range [...]byte{'\r', '\n'} {
		switch c, err := b.byte(); {
		case err != nil:
			return err
		case c != want:
			return errChunk
		}
	}
	return nil
}

func (b *bodyReader) byte() (byte, error) {
	if _, err := io.ReadFull(b.src, b.one[:]); err != nil {
		return 0, unexpected(err)
	}
	return b.one[0], nil
}

// unexpected turns io.EOF, which means a whole body, into io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// unhex returns the value of a hexadecimal digit, or 255.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// copyBuffers hold the buffers that bodies are copied through.
var copyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

type copyBuffer = *[32 << 10]byte
