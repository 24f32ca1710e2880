package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strings"

	"sallyport/rules/plan"
)

// A dialect is what iptables and ip6tables spell differently.
type dialect struct {
	icmp        string // as -p reads it
	unreachable string // as REJECT --reject-with reads it
	clientMask  string // the bits of an address that make a client: a host has a whole /64 of IPv6
	// unserved are where NodePorts are not served though they are addresses of the edge. What is sent from loopback to loopback
	// cannot leave the machine (net.ipv4.conf.*.route_localnet), and link-local addresses mean nothing beyond their link.
	unserved []netip.Prefix
}

var (
	ipv4 = dialect{"icmp", "icmp-port-unreachable", "32", []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	ipv6 = dialect{"ipv6-icmp", "icmp6-port-unreachable", "64",
		[]netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10")}}
)

func dialectOf(f plan.Family) *dialect {
	if f == plan.IPv6 {
		return &ipv6
	}
	return &ipv4
}

// maxChainName is how long the name of a chain may be (XT_EXTENSION_MAXNAMELEN, without the final zero).
const maxChainName = 28

// digestLength makes 65 bits: enough that no one finds a name whose digest is that of someone else's.
const digestLength = 13

// digest identifies something by n characters, 51 at most.
func digest(n int, what ...string) string {
	var buffer [256]byte
	text := buffer[:0]
	for _, w := range what {
		text = append(append(text, w...), 0)
	}
	sum := sha256.Sum256(text)
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:n])
}
