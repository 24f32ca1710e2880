package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// Addresses of the nodes' network that nobody has, for the group of the i-th gate.
func (s *site) groupOf(i int) (snat []netip.Prefix, gateway []netip.Addr) {
	v4, v6 := s.Host("node-1").Addr.As4(), s.Host("node-1").Addr6.As16()
	v4[3], v6[14], v6[15] = byte(152+8*i), 1, byte(8*i)
	snat = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(v4), 30), netip.PrefixFrom(netip.AddrFrom16(v6), 126)}
	v4[3], v6[15] = byte(240+i), byte(0xf0+i)
	return snat, []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// grouped runs gates of which each has a group of its own. The userspace dataplane has none.
func (s *site) grouped(t *testing.T, l4 string) []*gate {
	t.Helper()
	forwarding := slices.DeleteFunc(slices.Clone(dataplanes), func(d dataplane) bool { return !d.kernel })
	return s.gatesWith(t, forwarding, func(i int) string {
		snat, gateway := s.groupOf(i)
		return fmt.Sprintf("reach: pods\ngroups: [{name: a, snatAddresses: [%q, %q], nodesGateway: [%q, %q]}]\nl4: {DATAPLANE, %s}\n", snat[0], snat[1], gateway[0], gateway[1], l4)
	})
}

// wantSource is nil if the endpoint sees a source that is right.
func (c caller) wantSource(to netip.AddrPort, right func(netip.Addr) bool) error {
	peer, err := c.get(to, "/clientip")
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(peer)
	if err != nil {
		return err
	}
	if addr, err := netip.ParseAddr(host); err != nil || !right(addr.Unmap()) {
		return fmt.Errorf("%v: the endpoint sees %q", to, peer)
	}
	return nil
}

// TestGroupAddresses has connections to VIPs leave with the addresses of the VIPs' group, and others with the edge's own.
func TestGroupAddresses(t *testing.T) {
	s := theSite(t)
	gates := s.grouped(t, "snat: always")
	ns := s.webPods(t, 2)
	vips := s.vips(81)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", "ports: [{port: 8000, targetPort: serve, nodePort: 30170}]"))
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		snat, _ := s.groupOf(slices.Index(gates, g))
		s.routeGroup(t, g, snat[1])
		own := []netip.Addr{g.host.NodesAddr, g.host.NodesAddr6}
		for i, vip := range vips {
			eventually(t, func() error {
				return errors.Join(
					s.caller().wantSource(netip.AddrPortFrom(vip, 8000), snat[i].Contains),
					s.caller().wantSource(netip.AddrPortFrom(g.addrs()[i], 30170), func(a netip.Addr) bool { return a == own[i] }))
			})
		}
	})
}

// routeGroup routes a group's IPv6 addresses from the nodes to the gate: unlike ARP, NDP is not answered for addresses of another
// link.
func (s *site) routeGroup(t *testing.T, g *gate, six netip.Prefix) {
	t.Helper()
	for _, node := range []string{"node-1", "node-2"} {
		s.route(t, s.Host(node), six, g.host.NodesAddr, g.host.NodesAddr6)
	}
}

// TestClientAddresses has endpoints see who their clients are, where nodes answer through the edge. Those inside the cluster
// must not be answered past it.
func TestClientAddresses(t *testing.T) {
	s := theSite(t)
	gates := s.grouped(t, "returnPath: edge")
	ns := s.webPods(t, 2)
	vips := s.vips(82)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", "externalTrafficPolicy: Local, ports: [{port: 8000, targetPort: serve, nodePort: 30171}]"))
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		snat, gateway := s.groupOf(slices.Index(gates, g))
		s.routeGroup(t, g, snat[1])
		for _, node := range []string{"node-1", "node-2"} {
			for i, bits := range []int{23, 64} {
				clients := netip.PrefixFrom([]netip.Addr{s.client().Addr, s.client().Addr6}[i], bits).Masked()
				s.route(t, s.Host(node), clients, gateway[0], g.host.NodesAddr6) // for the same reason
			}
		}
		for i, vip := range vips {
			client := []netip.Addr{s.client().Addr, s.client().Addr6}[i]
			eventually(t, func() error {
				kept := func(a netip.Addr) bool { return a == client }
				return errors.Join(
					s.caller().wantSource(netip.AddrPortFrom(vip, 8000), kept),
					s.caller().wantSource(netip.AddrPortFrom(g.addrs()[i], 30171), kept),
					caller{host: s.Host("node-1")}.wantSource(netip.AddrPortFrom(vip, 8000), snat[i].Contains))
			})
		}
		if strings.Contains(g.log(), "spec.externalTrafficPolicy") {
			t.Errorf("Local is a problem where it is kept:\n%s", g.log())
		}
	})
}
