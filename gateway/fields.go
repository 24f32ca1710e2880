package gateway

import (
	"bytes"
)

// A fieldKind sorts header fields by what a proxy has to do with them.
type fieldKind uint8

const (
	fieldPlain      fieldKind = iota // end to end: relayed as it is
	fieldHost                        // normalised
	fieldLength                      // Content-Length: written anew from its number
	fieldCoding                      // Transfer-Encoding: written anew
	fieldConnection                  // names further fields of the hop
	fieldHop                         // of one hop only (RFC 9110 7.6.1, and the older ones of RFC 2616 13.5.1)
	fieldUpgrade                     // of one hop, and relayed if both hops are to be upgraded
	fieldTE
	fieldTrailer
	fieldExpect    // answered here
	fieldFor       // X-Forwarded-For
	fieldForProto  // X-Forwarded-Proto
	fieldForHost   // X-Forwarded-Host
	fieldForPort   // X-Forwarded-Port
	fieldRealIP    // X-Real-IP
	fieldForOther  // any other X-Forwarded-*, and Forwarded (RFC 7239)
	fieldAuthority // decides who the client is, or what may be cached: not in a trailer
	fieldTwin      // one of the above but fieldAuthority, spelt with an underscore: CGI cannot tell the two apart
)

// specialFields are the fields that are not plain, by length of the name.
var specialFields = func() (byLength [32][]specialField) {
	for kind, names := range map[fieldKind][]string{
		fieldHost:       {"host"},
		fieldLength:     {"content-length"},
		fieldCoding:     {"transfer-encoding"},
		fieldConnection: {"connection"},
		fieldHop: {"keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
			"http2-settings"},
		fieldUpgrade:  {"upgrade"},
		fieldTE:       {"te"},
		fieldTrailer:  {"trailer"},
		fieldExpect:   {"expect"},
		fieldFor:      {"x-forwarded-for"},
		fieldForProto: {"x-forwarded-proto"},
		fieldForHost:  {"x-forwarded-host"},
		fieldForPort:  {"x-forwarded-port"},
		fieldRealIP:   {"x-real-ip"},
		fieldForOther: {"forwarded"},
		fieldAuthority: {"authorization", "cookie", "set-cookie", "content-type", "content-encoding", "content-range",
			"range", "cache-control", "age", "date", "expires", "location", "vary", "www-authenticate"},
	} {
		for _, name := range names {
			byLength[len(name)] = append(byLength[len(name)], specialField{name, kind})
		}
	}
	return byLength
}()

type specialField struct {
	name string // lower case
	kind fieldKind
}

const forwardedPrefix = "x-forwarded-"

// kindOf returns the kind of the field with the name.
func kindOf(name []byte) fieldKind {
	kind := fieldPlain
	if len(name) < len(specialFields) {
		for _, f := range specialFields[len(name)] {
			if sameName(name, f.name) {
				kind = f.kind
				break
			}
		}
	}
	if kind == fieldPlain && len(name) > len(forwardedPrefix) && sameName(name[:len(forwardedPrefix)], forwardedPrefix) {
		kind = fieldForOther
	}
	if kind != fieldPlain && kind != fieldAuthority && bytes.IndexByte(name, '_') >= 0 {
		return fieldTwin
	}
	return kind
}

// sameName compares a field name, in any case and with underscores for hyphens, with one of equal length that is in
// lower case.
func sameName(name []byte, lower string) bool {
	for i, c := range name {
		switch {
		case c == '_':
			c = '-'
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return len(name) == len(lower)
}

// nextField cuts the first field off a header block. problem is set where the block departs from RFC 9112 5 in a way
// that two readers could read differently. At the end of the block, name is empty.
func nextField(block []byte) (name, value, rest []byte, problem *answer) {
	end := bytes.IndexByte(block, '\n')
	if end < 0 {
		return nil, nil, nil, nil
	}
	if end == 0 || block[end-1] != '\r' {
		return nil, nil, nil, answerBareLF
	}
	line, rest := block[:end-1], block[end+1:]
	if len(line) == 0 {
		return nil, nil, rest, nil
	}
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || !isToken(line[:colon]) { // a folded line begins with a space, which no token has
		return nil, nil, nil, answerFieldName
	}
	return line[:colon], trim(line[colon+1:]), rest, nil
}

// trim removes optional whitespace (RFC 9110 5.6.3) from both ends.
func trim(s []byte) []byte {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// isText reports whether a field's value has no control bytes (RFC 9110 5.5). fasthttp looks at those of headers.
func isText(value []byte) bool {
	for _, c := range value {
		if !textByte(c) {
			return false
		}
	}
	return true
}

func textByte(c byte) bool { return c >= ' ' && c != 0x7f || c == '\t' }

// isToken reports whether all bytes are tchar (RFC 9110 5.6.2).
func isToken(name []byte) bool {
	for _, c := range name {
		if !tokenByte[c] {
			return false
		}
	}
	return len(name) > 0
}

var tokenByte = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// nextToken cuts the first element off a comma-separated list.
func nextToken(list []byte) (token, rest []byte) {
	token, rest, _ = bytes.Cut(list, []byte{','})
	return trim(token), rest
}
