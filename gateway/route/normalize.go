package route

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
)

// The reasons why a host or path is refused. They are wrapped with the offending value.
var (
	ErrHost = errors.New("invalid host")
	ErrPath = errors.New("invalid path")
)

// maxHost is the length of the longest DNS name (RFC 1035 2.3.4, without the final dot).
const maxHost = 253

// AppendHost appends to dst the normalised authority of raw (RFC 3986 3.2 without userinfo): lower case, one trailing
// dot dropped, an empty port dropped. It returns the extended dst, which is what a Host header is to say, and host,
// the part of it before the port, which is what is matched.
func AppendHost(dst, raw []byte) (authority, host []byte, err error) {
	start := len(dst)
	name, port, ok := splitPort(raw)
	if !ok || len(name) > maxHost+1 || !validPort(port) {
		return dst, nil, fmt.Errorf("%w %q", ErrHost, raw)
	}
	if !bytes.HasPrefix(name, []byte{'['}) {
		name = bytes.TrimSuffix(name, []byte{'.'})
	}
	for _, c := range name {
		dst = append(dst, lower(c))
	}
	host = dst[start:]
	if !validHost(host) {
		return dst[:start], nil, fmt.Errorf("%w %q", ErrHost, raw)
	}
	if len(port) > 0 {
		dst = append(append(dst, ':'), port...)
	}
	return dst, dst[start : start+len(host)], nil
}

// splitPort cuts the port off an authority; ok is false for what is neither a name nor a bracketed IPv6 address.
func splitPort(raw []byte) (name, port []byte, ok bool) {
	if len(raw) > 0 && raw[0] == '[' {
		end := bytes.IndexByte(raw, ']')
		if end < 0 {
			return nil, nil, false
		}
		name, raw = raw[:end+1], raw[end+1:]
		return name, bytes.TrimPrefix(raw, []byte{':'}), len(raw) == 0 || raw[0] == ':'
	}
	name, port, _ = bytes.Cut(raw, []byte{':'})
	return name, port, true
}

func validPort(port []byte) bool {
	n := 0
	for _, c := range port {
		if c < '0' || c > '9' || n > 6553 {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// validHost takes a name of non-empty labels of letters, digits, hyphens and underscores, or a bracketed IPv6 address.
func validHost(h []byte) bool {
	if len(h) == 0 || len(h) > maxHost {
		return false
	}
	if h[0] == '[' {
		return validIPv6(h[1 : len(h)-1])
	}
	previous := byte('.')
	for _, c := range h {
		if c == '.' && previous == '.' || c != '.' && !isAlnum(c) && c != '-' && c != '_' {
			return false
		}
		previous = c
	}
	return previous != '.'
}

// validIPv6 checks the alphabet only: a wrong address matches no route.
func validIPv6(addr []byte) bool {
	for _, c := range addr {
		if c != ':' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return bytes.IndexByte(addr, ':') >= 0
}

// AppendPath appends to dst the normalised form of raw, the path of a request target without its query: unreserved
// characters decoded, other escapes in upper case (RFC 3986 6.2.2), bytes that a path cannot have escaped, dot segments
// removed (RFC 3986 5.2.4). Escaped slashes stay escaped and are no separators; repeated slashes stay. A path that
// does not begin with a slash, has a control byte, a backslash, a '#', an escaped NUL or a broken escape is refused.
func AppendPath(dst, raw []byte) ([]byte, error) {
	if len(raw) == 0 || raw[0] != '/' {
		return dst, fmt.Errorf("%w %q: does not begin with a slash", ErrPath, raw)
	}
	if isNormal(raw) {
		return append(dst, raw...), nil
	}
	start := len(dst)
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c == '%':
			v, ok := unescape(raw[i:])
			if !ok || v == 0 {
				return dst[:start], fmt.Errorf("%w %q: bad escape", ErrPath, raw)
			}
			if isUnreserved(v) {
				dst = append(dst, v)
			} else {
				dst = appendEscape(dst, v)
			}
			i += 2
		case c < ' ' || c == 0x7f || c == '\\' || c == '#' || c == '?':
			return dst[:start], fmt.Errorf("%w %q: byte %#02x", ErrPath, raw, c)
		case pathByte[c]:
			dst = append(dst, c)
		default:
			dst = appendEscape(dst, c)
		}
	}
	return dst[:start+removeDotSegments(dst[start:])], nil
}

// isNormal reports whether there is certainly nothing to do: only plain bytes, and no element that begins with a dot.
func isNormal(path []byte) bool {
	previous := byte(0)
	for _, c := range path {
		if !pathByte[c] || c == '.' && previous == '/' {
			return false
		}
		previous = c
	}
	return true
}

// removeDotSegments does RFC 3986 5.2.4 in place and returns the new length. The path begins with a slash.
func removeDotSegments(path []byte) int {
	out := 0
	for in := 0; in < len(path); {
		end := len(path) // of the element that begins with the slash at in
		if next := bytes.IndexByte(path[in+1:], '/'); next >= 0 {
			end = in + 1 + next
		}
		element := path[in+1 : end]
		isDot, isDotDot := string(element) == ".", string(element) == ".."
		if isDotDot {
			out = max(0, bytes.LastIndexByte(path[:out], '/'))
		}
		switch {
		case !isDot && !isDotDot:
			out += copy(path[out:], path[in:end])
		case end == len(path): // a last "." or ".." leaves its slash
			path[out] = '/'
			out++
		}
		in = end
	}
	return out
}

// unescape decodes the escape that s begins with.
func unescape(s []byte) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	var v [1]byte
	_, err := hex.Decode(v[:], s[1:3])
	return v[0], err == nil
}

func appendEscape(dst []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(dst, '%', digits[c>>4], digits[c&15])
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isUnreserved(c byte) bool {
	return isAlnum(c) || c == '-' || c == '.' || c == '_' || c == '~'
}

// pathByte holds the bytes that stand for themselves in a path: pchar of RFC 3986 3.3 and the slash, and four more
// that browsers send unescaped. Rewriting those would only surprise a backend.
var pathByte = func() (t [256]bool) {
	for c := range t {
		t[c] = isUnreserved(byte(c))
	}
	for _, c := range "/!$&'()*+,;=:@" + "[]|^" {
		t[c] = true
	}
	return t
}()
