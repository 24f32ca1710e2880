package rules

import (
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"sallyport/rules/plan"
)

// A stack is what this machine has of one version of IP.
type stack struct {
	plan.Family
	number  int            // of the family, in netlink
	all     netip.Prefix   // every address
	special []netip.Prefix // addresses that neither pods nor VIPs can have (RFC 6890)
	widest  int            // the least length of a podCIDR that gets a route: a wider one would take in what the default route leads to

	forwarding string // the sysctl
	router     bool   // others rely on forwarding
	learnt     bool   // router is known, for as long as forwarding stays on

	main   []netlink.Route // of the main table, as Reconcile found them
	routed []netip.Prefix  // that we made routes to
}

func newStack(f plan.Family) *stack {
	if f == plan.IPv4 {
		return &stack{Family: f, number: netlink.FAMILY_V4, widest: 8, forwarding: "net.ipv4.ip_forward",
			all: prefixes("0.0.0.0/0")[0],
			// Unspecified, loopback, link-local, multicast and reserved.
			special: prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")}
	}
	return &stack{Family: f, number: netlink.FAMILY_V6, widest: 32, forwarding: "net.ipv6.conf.all.forwarding",
		all: prefixes("::/0")[0],
		// Unspecified, loopback and IPv4-compatible; IPv4-mapped; link-local; multicast.
		special: prefixes("::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8")}
}

// hasIPv6 says whether this machine has IPv6, or why not.
func hasIPv6() (has bool, why string) {
	const disabled = "net.ipv6.conf.all.disable_ipv6"
	value, err := readSysctl(disabled)
	switch {
	case err != nil:
		return false, "the kernel has none"
	case value != "0":
		return false, disabled + " is " + value
	default:
		return true, ""
	}
}

// isSpecial says whether no machine can have such addresses to be reached at.
func (s *stack) isSpecial(p netip.Prefix) bool { return slices.ContainsFunc(s.special, p.Overlaps) }

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// sysctlPath is the file of a kernel setting, whose name is as sysctl(8) takes it: a dot within the name of a link is a slash.
func sysctlPath(name string) string { return "/proc/sys/" + dotsToSlashes.Replace(name) }

var dotsToSlashes = strings.NewReplacer(".", "/", "/", ".")

func readSysctl(name string) (string, error) {
	value, err := os.ReadFile(sysctlPath(name))
	return strings.TrimSpace(string(value)), err
}

// setSysctl writes a kernel setting unless it has the value already, and says whether it wrote.
func setSysctl(name, value string) (changed bool, err error) {
	old, err := readSysctl(name)
	if err != nil || old == value {
		return false, err
	}
	return true, os.WriteFile(sysctlPath(name), []byte(value), 0o644)
}
