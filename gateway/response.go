package gateway

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"

	"github.com/valyala/fasthttp"
)

const (
	// maxInterim bounds the interim responses (1xx) before the final one.
	maxInterim = 16
	// spliceFrom is the least length of a body that is worth a pipe for the kernel to move it through.
	spliceFrom = 64 << 10
	// spliceStep is how much is moved at a time: the watcher must see progress.
	spliceStep = 256 << 10
)

var errInterim = errors.New("the endpoint sent an unexpected interim response")

// readHead reads the header of the final response, which a 101 that was asked for is. Other interim responses are
// dropped, which RFC 9110 15.2 allows; a 101 that nobody asked for is an error, or whatever follows would be taken for
// the answer to another's request.
func (x *exchange) readHead() error {
	h := &x.ctx.Response.Header
	h.SetNoDefaultContentType(true)
	for range maxInterim {
		if err := h.Read(x.up.br); err != nil {
			return err
		}
		switch code := h.StatusCode(); {
		case code == fasthttp.StatusSwitchingProtocols && x.switches():
			return nil
		case code == fasthttp.StatusSwitchingProtocols, code < 100:
			return errInterim
		case code >= 200 && len(h.Peek(fasthttp.HeaderDate)) == 0:
			return addDate(h)
		case code >= 200:
			return nil
		}
	}
	return errInterim
}

// respond hands the response, whose header has been read, to fasthttp. A body that has already come in whole is
// copied, and the connection is free; any other is relayed by WriteTo.
func (x *exchange) respond() {
	resp := &x.ctx.Response
	h := &resp.Header
	http10 := string(h.Protocol()) == "HTTP/1.0"
	frame, length := responseFraming(h, string(x.req.method) == fasthttp.MethodHead)
	keepAlive := http10 && bytes.EqualFold(h.Peek(fasthttp.HeaderConnection), []byte("keep-alive"))
	closes := cleanResponse(h)
	x.keep = frame != framingClose && !closes && (!http10 || keepAlive)
	if len(h.Server()) == 0 {
		h.SetServer(serverName)
	}
	keepAnnounced(h)
	h.SetProtocol(protocol11)
	if x.req.version1 {
		h.Del(fasthttp.HeaderTransferEncoding)
	}
	if x.req.close || x.g.draining.Load() || !x.requestRead() {
		h.SetConnectionClose()
		x.c.linger = !x.requestRead()
	}
	x.g.metrics.countCode(h.StatusCode())
	x.out.reset(x.up.br, frame, length)
	x.c.enter(phaseRespond, x.up)
	x.respondBody(frame, length)
}

var protocol11 = []byte("HTTP/1.1")

func (x *exchange) respondBody(frame framing, length int) {
	resp := &x.ctx.Response
	buffered := x.up.br.Buffered()
	switch {
	case frame == framingNone:
		x.up.wary = true
		x.finish()
	case frame == framingLength && length <= buffered:
		body, _ := x.up.br.Peek(length)
		resp.SetBody(body)
		_, _ = x.up.br.Discard(length)
		x.out.ended = true
		x.finish()
	case frame == framingChunked && x.takeChunks():
		x.finish()
	case frame != framingLength && x.req.version1:
		x.respondUntilClose()
	default:
		if frame != framingLength {
			length = -1
		}
		resp.SetBodyStream(x, length)
		resp.ImmediateHeaderFlush = buffered == 0 // the body may be long in coming
	}
}

var lastChunk = []byte("0\r\n\r\n")

// takeChunks copies a chunked body that has already come in whole, and reports whether there was one: dynamic pages
// are mostly like that, and with a length they cost one write, not three. Trailers need chunks, so they stay.
func (x *exchange) takeChunks() bool {
	br := x.up.br
	raw, _ := br.Peek(br.Buffered())
	if !bytes.HasSuffix(raw, lastChunk) {
		return false
	}
	buf := copyBuffers.Get().(copyBuffer)
	defer copyBuffers.Put(buf)
	x.chunks.Reset(raw)
	x.out.reset(&x.chunks, framingChunked, 0)
	n, err := io.ReadFull(&x.out, buf[:min(len(raw), len(buf))]) // shorter than its chunks, so this meets the end
	if err != io.ErrUnexpectedEOF && err != io.EOF || !x.out.ended || x.chunks.Len() > 0 || len(x.out.trailers) > 0 {
		x.out.reset(br, framingChunked, 0)
		return false
	}
	_, _ = br.Discard(len(raw))
	x.ctx.Response.SetBody(buf[:n])
	return true
}

// responseFraming says how the response's body ends (RFC 9112 6.3).
func responseFraming(h *fasthttp.ResponseHeader, head bool) (framing, int) {
	code, length := h.StatusCode(), h.ContentLength()
	if code == fasthttp.StatusNoContent {
		h.Del(fasthttp.HeaderContentLength) // RFC 9110 8.6: a 204 has none
		h.Del(fasthttp.HeaderTransferEncoding)
	}
	switch {
	case head, code == fasthttp.StatusNoContent, code == fasthttp.StatusNotModified, length == 0:
		return framingNone, 0
	case length > 0:
		return framingLength, length
	case length == -1:
		return framingChunked, 0
	}
	return framingClose, 0
}

// addDate adds the Date that a response without one is to get (RFC 9110 6.6.1). fasthttp writes it, but only for a
// header that was reset: hence the detour, which few endpoints make necessary.
func addDate(h *fasthttp.ResponseHeader) error {
	block := bytes.Clone(h.Header())
	h.Reset()
	h.SetNoDefaultContentType(true)
	return h.Read(bufio.NewReaderSize(bytes.NewReader(block), len(block)))
}

// Read is not used: fasthttp prefers WriteTo.
func (x *exchange) Read(p []byte) (int, error) { return x.out.Read(p) }

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (x *exchange) SupportsBodyWriteTo() bool { return true }

// WriteTo relays the response's body to the client, and its trailers to the response's header. An error makes
// fasthttp close the client's connection before the body's end is written.
func (x *exchange) WriteTo(w io.Writer) (written int64, err error) {
	flusher, _ := w.(*bufio.Writer) // or fasthttp's writer of chunks, which flushes each
	buf := copyBuffers.Get().(copyBuffer)
	defer copyBuffers.Put(buf)
	for {
		n, err := x.relaySome(w, flusher, buf[:])
		written += n
		switch {
		case errors.Is(err, io.EOF):
			x.setTrailers()
			return written, nil
		case err != nil:
			x.brokeOff(err)
			return written, err
		}
	}
}

// relaySome moves what is there, or waits for it.
func (x *exchange) relaySome(w io.Writer, flusher *bufio.Writer, buf []byte) (int64, error) {
	br := x.up.br
	if x.c.tls == nil && flusher != nil && br.Buffered() == 0 && x.out.framing == framingLength && x.out.left >= spliceFrom {
		return x.splice(flusher)
	}
	n, err := x.gather(buf)
	x.c.touch()
	if n > 0 {
		if _, writeErr := w.Write(buf[:n]); writeErr != nil {
			return 0, writeErr
		}
	}
	if err == nil && flusher != nil && br.Buffered() == 0 {
		err = flusher.Flush()
	}
	return int64(n), err
}

// gather reads what is there, and waits only for the first byte. A response of known length that has come in more than
// one piece is written in one.
func (x *exchange) gather(buf []byte) (n int, err error) {
	for {
		more, err := x.out.Read(buf[n:])
		n += more
		if err != nil || more == 0 || n == len(buf) || x.out.framing != framingLength || x.out.ended {
			return n, err
		}
		if x.up.br.Buffered() == 0 && x.up.peek() != peekBytes {
			return n, nil
		}
	}
}

// splice lets the kernel move a part of the body from one socket to the other.
func (x *exchange) splice(w *bufio.Writer) (int64, error) {
	if err := w.Flush(); err != nil { // an empty buffer makes ReadFrom go straight to the connection
		return 0, err
	}
	want := min(x.out.left, spliceStep)
	n, err := w.ReadFrom(&io.LimitedReader{R: x.up.tcp, N: want})
	if err == nil && n < want {
		err = io.EOF
	}
	return n, x.out.took(n, err)
}

// brokeOff comes when a response ends before its body did. It sees to it that the client knows, and counts by whose
// fault it was.
func (x *exchange) brokeOff(err error) {
	reason := reasonClient
	switch {
	case errors.Is(err, net.ErrClosed): // by the watcher
		reason = reasonLimit
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errChunk), x.up.peek() == peekClosed:
		reason = reasonEndpoint
	}
	x.c.breakOff()
	x.g.metrics.errors.WithLabelValues(reason).Inc()
	x.g.log.Debug("response broke off", "endpoint", x.endpoint.Addr().String(), "reason", reason, "err", err)
}

// keepAnnounced sees to it that fields of the header are relayed although a trailer of their name is announced, as is
// usual with Server-Timing: fasthttp takes such a field for the trailer and leaves it out of the header.
func keepAnnounced(h *fasthttp.ResponseHeader) {
	for _, name := range h.PeekTrailerKeys() {
		if len(h.PeekBytes(name)) > 0 {
			_ = h.SetTrailerBytes(nil) // need not be announced (RFC 9110 6.6.2)
			return
		}
	}
}

// setTrailers announces and sets the trailers that came; fasthttp leaves out what must not be one.
func (x *exchange) setTrailers() {
	h := &x.ctx.Response.Header
	_ = h.SetTrailerBytes(nil) // what was announced may not have come
	for section := x.out.trailers; ; {
		name, value, rest, problem := nextField(section)
		if problem != nil || len(name) == 0 {
			return
		}
		if kindOf(name) == fieldPlain && h.AddTrailerBytes(name) == nil {
			h.SetBytesKV(name, value)
		}
		section = rest
	}
}

// Close ends the exchange after the response was written, or could not be. fasthttp calls it once.
func (x *exchange) Close() error {
	if x.up != nil { // a panic has not let go of it
		x.finish()
		x.release()
	}
	return nil
}

// finish frees the upstream connection: for the next request if all was read and sent, else by closing it.
func (x *exchange) finish() {
	up := x.up
	x.stopUpload()
	keep := x.c.detach() == verdictNone && x.keep && !x.unsent && x.out.ended && up.br.Buffered() == 0
	if keep {
		up.pool.put(up)
	} else {
		up.abort()
	}
	x.endpoint.End()
	x.up = nil
	x.leave()
}

// takeOver has run called, in a goroutine of its own, as soon as earlier responses are written. It is given what the
// client sends. When it has returned, fasthttp's buffers and x.ctx are gone, and the serving goroutine calls what it has
// returned, if anything. Then the exchange and the connection are closed.
func (x *exchange) takeOver(run func(client io.Reader) (rest func())) {
	rest := make(chan func(), 1)
	x.c.handover, x.c.rest = x, rest
	x.ctx.HijackSetNoResponse(true)
	x.ctx.Hijack(func(client net.Conn) { // which is not called if earlier responses cannot be written
		var then func()
		defer func() { rest <- then }()
		defer x.rescue()
		then = run(client)
	})
}

// respondUntilClose writes a response of unknown length to an HTTP/1.0 client, which knows no chunks: the end of the
// connection is the end of the body.
func (x *exchange) respondUntilClose() {
	h := &x.ctx.Response.Header
	h.SetConnectionClose()
	head := bytes.Clone(h.Header())
	x.takeOver(func(io.Reader) func() {
		w := bufio.NewWriter(x.c)
		_, err := w.Write(head)
		if err == nil {
			_, err = x.WriteTo(w)
		}
		if err == nil {
			err = w.Flush()
		}
		if err != nil {
			x.c.reset()
		}
		return nil
	})
}
