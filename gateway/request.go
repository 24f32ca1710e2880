package gateway

import (
	"bytes"

	"github.com/valyala/fasthttp"

	"sallyport/gateway/route"
)

// A framing says how the end of a body is found.
type framing uint8

const (
	framingNone    framing = iota // no body
	framingLength                 // by Content-Length
	framingChunked                // by the last chunk
	framingClose                  // by the end of the connection; of responses only
)

// maxNamed bounds how many fields a Connection field may name: each is compared with every field.
const maxNamed = 16

// A request is what the gateway knows about a client's request. Its slices are valid until the handler returns.
type request struct {
	method    []byte
	authority []byte // what Host says, normalised
	host      []byte // authority without port: what is matched
	path      []byte // normalised; "*" for OPTIONS *
	query     []byte // with its question mark
	target    []byte // path and query as they came, or "*"
	proto     []byte // what X-Forwarded-Proto says, first
	upgrade   []byte // the protocols that Upgrade asks for; nil if it is an ordinary request
	block     []byte // header block as it came
	fields    []field

	framing  framing
	length   int  // of framingLength
	hasHost  bool // a Host field came
	hasSize  bool // a Content-Length field came
	close    bool // the client asked to close the connection
	trailers bool // TE says that trailers are welcome
	version1 bool // HTTP/1.0
	named    [][]byte

	hostBuf, pathBuf []byte // storage of authority and path
}

// A field is a line of a header block: where it ends, with CR LF, and where its name does.
type field struct {
	kind         fieldKind
	nameEnd, end int
}

// read fills r from what fasthttp has parsed. Everything that decides about framing and routing is taken from the
// bytes that came, since fasthttp is more lenient than a proxy may be.
func (r *request) read(h *fasthttp.RequestHeader) *answer {
	r.method, r.block, r.fields = h.Method(), h.RawHeaders(), r.fields[:0]
	r.version1 = !h.IsHTTP11()
	r.framing, r.length, r.named = framingClose, 0, r.named[:0] // unknown, that is
	r.hasHost, r.hasSize, r.close, r.trailers = false, false, false, false
	r.proto, r.upgrade = nil, nil
	if string(h.Protocol()) != "HTTP/1.1" && string(h.Protocol()) != "HTTP/1.0" {
		return answerVersion
	}
	if problem := r.readFields(h); problem != nil {
		r.framing = framingClose
		return problem
	}
	switch string(r.method) {
	case fasthttp.MethodConnect, fasthttp.MethodTrace, "TRACK":
		return answerMethod
	}
	return r.readTarget(h.RequestURI(), h.Host())
}

// readFields goes through the header block for what decides about framing.
func (r *request) readFields(h *fasthttp.RequestHeader) *answer {
	r.framing = framingNone
	for start := 0; ; {
		name, value, rest, problem := nextField(r.block[start:])
		if problem != nil {
			return problem
		}
		if len(name) == 0 {
			break
		}
		kind := kindOf(name)
		if problem = r.note(kind, value); problem != nil {
			return problem
		}
		end := len(r.block) - len(rest)
		r.fields = append(r.fields, field{kind, start + len(name), end})
		start = end
	}
	switch {
	case r.framing == framingChunked && (r.hasSize || r.version1):
		return answerFraming
	case r.framing == framingNone && r.hasSize:
		r.framing, r.length = framingLength, max(0, h.ContentLength())
	}
	if r.framing == framingLength && r.length == 0 {
		r.framing = framingNone
	}
	r.readUpgrade()
	return nil
}

// note takes from a field what the gateway has to know. fasthttp has seen to it that Content-Length is one number.
func (r *request) note(kind fieldKind, value []byte) *answer {
	switch kind {
	case fieldHost:
		if r.hasHost {
			return answerHost
		}
		r.hasHost = true
	case fieldLength:
		if r.hasSize {
			return answerFraming
		}
		r.hasSize = true
	case fieldCoding:
		if r.framing == framingChunked || !bytes.EqualFold(value, []byte("chunked")) {
			return answerFraming
		}
		r.framing = framingChunked
	case fieldExpect:
		if !r.version1 && !bytes.EqualFold(value, []byte(continueExpectation)) {
			return answerExpect
		}
	case fieldTE:
		for token, rest := nextToken(value); len(token) > 0 || len(rest) > 0; token, rest = nextToken(rest) {
			r.trailers = r.trailers || bytes.EqualFold(token, []byte("trailers"))
		}
	case fieldUpgrade:
		r.noteUpgrade(value)
	case fieldForProto:
		if r.proto == nil {
			r.proto, _ = nextToken(value)
		}
	case fieldConnection:
		return r.noteConnection(value)
	}
	return nil
}

func (r *request) noteConnection(value []byte) *answer {
	for token, rest := nextToken(value); len(token) > 0 || len(rest) > 0; token, rest = nextToken(rest) {
		switch {
		case len(token) == 0, bytes.EqualFold(token, []byte("keep-alive")):
		case bytes.EqualFold(token, []byte("close")):
			r.close = true
		case len(r.named) == maxNamed:
			return answerConnection
		default:
			r.named = append(r.named, token)
		}
	}
	return nil
}

// noteUpgrade takes the field for one that cannot be honoured if it comes twice, which nobody does.
func (r *request) noteUpgrade(value []byte) {
	if r.upgrade != nil {
		value = value[:0]
	}
	r.upgrade = value
}

// isNamed reports whether the Connection field named the field, which makes it one of this hop.
func (r *request) isNamed(name []byte) bool {
	for _, n := range r.named {
		if bytes.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// readTarget splits the request target into host, path and query, each in its normal form. A target in absolute form
// overrides the Host field (RFC 9112 3.2.2), which has to be valid nevertheless (3.2).
func (r *request) readTarget(target, host []byte) *answer {
	if bytes.IndexByte(target, '#') >= 0 {
		return answerTarget
	}
	asterisk := string(target) == "*" && string(r.method) == fasthttp.MethodOptions
	if len(target) > 0 && target[0] != '/' && !asterisk {
		if problem := r.setHost(host); problem != nil {
			return problem
		}
		var ok bool
		if host, target, ok = cutAbsolute(target); !ok {
			return answerTarget
		}
	}
	if problem := r.setHost(host); problem != nil {
		return problem
	}
	path := target
	r.query, r.target = nil, target
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		path, r.query = target[:i], target[i:]
	}
	if asterisk {
		r.path = append(r.pathBuf[:0], '*')
	} else {
		var err error
		if r.path, err = route.AppendPath(r.pathBuf[:0], path); err != nil {
			return answerTarget
		}
	}
	r.pathBuf = r.path
	return nil
}

// setHost normalises the host. Only HTTP/1.0 may come without one.
func (r *request) setHost(raw []byte) *answer {
	if len(raw) == 0 {
		r.authority, r.host = nil, nil
		if r.version1 {
			return nil
		}
		return answerHost
	}
	var err error
	if r.authority, r.host, err = route.AppendHost(r.hostBuf[:0], raw); err != nil {
		return answerHost
	}
	r.hostBuf = r.authority
	return nil
}

// cutAbsolute splits a target in absolute form, such as "http://host/path?query", into authority and the rest.
func cutAbsolute(target []byte) (authority, rest []byte, ok bool) {
	scheme, after, ok := bytes.Cut(target, []byte("://"))
	if !ok || !bytes.EqualFold(scheme, []byte("http")) && !bytes.EqualFold(scheme, []byte("https")) {
		return nil, nil, false
	}
	end := bytes.IndexAny(after, "/?")
	switch {
	case end < 0:
		return after, []byte{'/'}, len(after) > 0
	case after[end] == '?':
		return nil, nil, false // a query without a path: the path would have to be made up
	}
	return after[:end], after[end:], end > 0
}
