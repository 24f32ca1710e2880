package gateway

import (
	"bytes"
	"strconv"

	"github.com/valyala/fasthttp"
)

// appendHead appends the header block, with its request line, that goes to the endpoint.
func (x *exchange) appendHead(dst []byte) []byte {
	r := &x.req
	dst = append(append(dst, r.method...), ' ')
	dst = append(append(dst, r.path...), r.query...)
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	if len(r.authority) > 0 {
		dst = append(dst, r.authority...)
	} else {
		dst = append(dst, x.c.localText...) // HTTP/1.1 wants a host; this is what the client took for one
	}
	dst = append(dst, "\r\n"...)
	dst = x.appendFields(dst)
	if r.upgrade != nil {
		dst = appendField(dst, "Connection: Upgrade\r\nUpgrade: ", r.upgrade, "")
	}
	switch {
	case r.framing == framingChunked:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	case r.hasSize:
		dst = append(dst, "Content-Length: "...)
		dst = append(strconv.AppendInt(dst, int64(r.length), 10), "\r\n"...)
	}
	if r.trailers {
		dst = append(dst, "TE: trailers\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// appendFields appends the client's end-to-end fields, in their order and spelling, and the X-Forwarded-* fields.
func (x *exchange) appendFields(dst []byte) []byte {
	var kept [fieldTwin + 1]bool // what a trusted proxy has already said
	x.forwardedFor = x.forwardedFor[:0]
	block, run, start := x.req.block, 0, 0 // run: where the fields begin that go as one piece
	for _, f := range x.req.fields {
		if x.relays(f.kind, block[start:f.nameEnd]) {
			kept[f.kind] = true
		} else {
			dst = append(dst, block[run:start]...)
			run = f.end
			if value := trim(block[f.nameEnd+1 : f.end-2]); f.kind == fieldFor && x.c.trusted && len(value) > 0 {
				x.forwardedFor = append(append(x.forwardedFor, value...), ", "...)
			}
		}
		start = f.end
	}
	dst = append(dst, block[run:start]...)
	dst = appendField(dst, "X-Forwarded-For: ", x.forwardedFor, x.c.peerText)
	for _, f := range [...]struct {
		kind        fieldKind
		name, value string
	}{
		{fieldForProto, "X-Forwarded-Proto: ", x.c.scheme},
		{fieldForPort, "X-Forwarded-Port: ", x.c.localPort},
		{fieldRealIP, "X-Real-IP: ", x.c.peerText},
	} {
		if !kept[f.kind] {
			dst = appendField(dst, f.name, nil, f.value)
		}
	}
	if !kept[fieldForHost] && len(x.req.authority) > 0 {
		dst = appendField(dst, "X-Forwarded-Host: ", x.req.authority, "")
	}
	return dst
}

// relays reports whether a field of the request goes to the endpoint as it came.
func (x *exchange) relays(kind fieldKind, name []byte) bool {
	switch kind {
	case fieldPlain, fieldAuthority:
		return len(x.req.named) == 0 || !x.req.isNamed(name)
	case fieldTrailer:
		return x.req.framing == framingChunked
	case fieldForProto, fieldForHost, fieldForPort, fieldRealIP, fieldForOther:
		return x.c.trusted
	}
	return false
}

func appendField(dst []byte, name string, value []byte, more string) []byte {
	dst = append(append(dst, name...), value...)
	return append(append(dst, more...), "\r\n"...)
}

// appendTrailers appends those fields of a trailer section that may be merged into a header (RFC 9110 6.5.1), and
// the empty line after them.
func appendTrailers(dst, section []byte) []byte {
	for {
		name, _, rest, problem := nextField(section)
		if problem != nil || len(name) == 0 {
			return append(dst, "\r\n"...)
		}
		if kindOf(name) == fieldPlain {
			dst = append(dst, section[:len(section)-len(rest)]...)
		}
		section = rest
	}
}

// hopFields are the fields of a response that concern the hop from the endpoint only.
var hopFields = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Te", "Upgrade"}

// cleanResponse removes what the response's header says about the hop from the endpoint, and reports whether the
// endpoint is going to close the connection.
func cleanResponse(h *fasthttp.ResponseHeader) (closes bool) {
	closes = h.ConnectionClose()
	var named []string // seldom any
	for _, value := range h.PeekAll(fasthttp.HeaderConnection) {
		for token, rest := nextToken(value); len(token) > 0 || len(rest) > 0; token, rest = nextToken(rest) {
			switch {
			case bytes.EqualFold(token, []byte("close")):
				closes = true
			case kindOf(token) == fieldPlain && len(token) > 0:
				named = append(named, string(token))
			}
		}
	}
	h.ResetConnectionClose()
	for _, name := range hopFields {
		h.Del(name)
	}
	for _, name := range named {
		h.Del(name)
	}
	return closes
}
