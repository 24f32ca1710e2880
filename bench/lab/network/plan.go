package network

import (
	"fmt"
	"net/netip"
	"regexp"
)

// maxLabs bounds how many labs may run at once: each has a second octet of its own, from 200 on.
const maxLabs = 50

// Offsets of the hosts' addresses in the clients' and the nodes' network; the n-th node or edge, counted from 1, comes
// n after its offset.
const (
	routerOffset      = 1
	controlOffset     = 2
	clientOffset      = 10
	edgeClientsOffset = 20
	nodeOffset        = 10
	edgeNodesOffset   = 100
	maxNodes          = edgeNodesOffset - nodeOffset - 1
	maxEdges          = 100
)

// validName keeps the dots of a namespace's name for us and its length, with a pod's part, well within a file name's.
var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?$`)

// CheckName says whether name may name a lab.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("lab name %q: want at most 30 lower-case letters, digits and inner dashes", name)
	}
	return nil
}

// A subnet is one L2 network in both families.
type subnet struct {
	v4, v6 netip.Prefix
}

// host returns the addresses of offset n in s.
func (s subnet) host(n int) (v4, v6 netip.Addr) {
	four, six := s.v4.Addr().As4(), s.v6.Addr().As16()
	four[3] += byte(n)
	six[15] += byte(n)
	return netip.AddrFrom4(four), netip.AddrFrom16(six)
}

// A plan is the address plan of the lab with one index. The IPv4 prefixes are private (RFC 1918) and differ between
// labs, because the root namespace sees a part of them; the IPv6 ones are unique local (RFC 4193).
type plan struct {
	clients subnet       // client, router, edges; the API server for those without a leg to the nodes
	pool    netip.Prefix // the upper half of clients: free for VIPs
	pool6   netip.Prefix // free for VIPs, inside clients
	nodes   subnet       // nodes, control, edges
	uplink  netip.Prefix // root namespace (first address) and control (second)
}

func newPlan(index int) plan {
	v4 := func(third byte, bits int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(200 + index), third, 0}), bits)
	}
	v6 := func(subnet byte, tail byte, bits int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x5a, 3: 0x11, 5: byte(index), 7: subnet, 14: tail}), bits)
	}
	return plan{
		clients: subnet{v4(0, 23), v6(0, 0, 64)},
		pool:    v4(1, 24),
		pool6:   v6(0, 1, 120),
		nodes:   subnet{v4(2, 24), v6(2, 0, 64)},
		uplink:  v4(3, 30),
	}
}

// uplinkHosts returns the two usable addresses of the uplink.
func (p plan) uplinkHosts() (root, control netip.Addr) {
	root = p.uplink.Addr().Next()
	return root, root.Next()
}
