package translate

import (
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// normalizeHost checks a rule's host as the API server does (networking/v1 IngressRule.host) and gives it in lower
// case. why says what is wrong with it, or is empty.
func normalizeHost(host string) (_, why string) {
	host = strings.ToLower(host)
	if host == "" || isPlainName(host) {
		return host, ""
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", "is an IP address, where a DNS name is expected"
	}
	check := validation.IsDNS1123Subdomain
	if strings.Contains(host, "*") {
		check = validation.IsWildcardDNS1123Subdomain
	}
	if len(check(host)) > 0 {
		return "", `is not a DNS name, or "*." and a DNS name (without port or dot at the end)`
	}
	return host, ""
}

// isPlainName says quickly that a host is a DNS name for certain, as nearly all are: labels of lower-case letters, digits
// and hyphens, the last of which begins with a letter, so that it is no IP address.
func isPlainName(host string) bool {
	const maxName = 253 // RFC 1035 section 2.3.4
	previous, last := byte('.'), 0
	for i := range len(host) {
		c := host[i]
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
		case (c == '.' || c == '-') && previous != '.' && (previous != '-' || c == '-'):
		default:
			return false
		}
		if previous == '.' {
			last = i
		}
		previous = c
	}
	return len(host) <= maxName && previous != '.' && previous != '-' && host[last] >= 'a'
}

// normalizePath gives the path the form in which the gateway compares it with a request's: percent-encoded, except for
// the unreserved characters (RFC 3986 section 6.2.2), with upper-case hexadecimal digits. Sequences that the API
// server refuses (networking/v1 HTTPIngressPath.path) are refused, because no normalised request contains
// them. why says what is wrong, or is empty.
func normalizePath(path string) (_, why string) {
	if !strings.HasPrefix(path, "/") {
		return "", `does not begin with "/"`
	}
	if isPlainPath(path) {
		return path, ""
	}
	return encodePath(path)
}

// isPlainPath says quickly that a path has the form already, as nearly all do: it begins with a slash, and has unreserved
// characters in segments that neither are empty, except for the last, nor begin with a dot.
func isPlainPath(path string) bool {
	previous := byte(0)
	for i := range len(path) {
		c := path[i]
		if c != '/' && !isUnreserved(c) || previous == '/' && (c == '/' || c == '.') {
			return false
		}
		previous = c
	}
	return true
}

// encodePath is normalizePath of a path that begins with a slash.
func encodePath(path string) (_, why string) {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
				return "", `has a "%" without two hexadecimal digits`
			}
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			i += 2
			if c == '/' || c == 0 {
				return "", "has an encoded slash or NUL"
			}
			writeEncoded(&b, c, isUnreserved(c))
			continue
		}
		if c < ' ' || c == 0x7f || strings.IndexByte(`?#\`, c) >= 0 {
			return "", fmt.Sprintf("has a %q, which is never part of a path", c)
		}
		writeEncoded(&b, c, isPathByte(c))
	}
	return checkSegments(b.String())
}

// checkSegments refuses empty segments, except for the last, and dot segments.
func checkSegments(path string) (_, why string) {
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		switch {
		case s == "" && i < len(segments)-1:
			return "", `has a "//"`
		case s == "." || s == "..":
			return "", "has a dot segment"
		}
	}
	return path, ""
}

// trimSlash removes the slash at the end, which makes no difference to a Prefix (/foo/ matches /foo, says the Ingress
// documentation), so that equal prefixes are equal strings.
func trimSlash(path string) string {
	if len(path) > 1 {
		return strings.TrimSuffix(path, "/")
	}
	return path
}

// writeEncoded writes c, percent-encoded unless literal.
func writeEncoded(b *strings.Builder, c byte, literal bool) {
	if literal {
		b.WriteByte(c)
		return
	}
	const digits = "0123456789ABCDEF"
	b.WriteByte('%')
	b.WriteByte(digits[c>>4])
	b.WriteByte(digits[c&15])
}

// isUnreserved says whether c means the same encoded or not (RFC 3986 section 2.3).
func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// isPathByte says whether c may stand in a path as it is: RFC 3986 section 3.3, pchar and "/", and four more that
// browsers send unescaped.
func isPathByte(c byte) bool {
	return isUnreserved(c) || strings.IndexByte("!$&'()*+,;=:@/"+"[]|^", c) >= 0
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f' }

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}
