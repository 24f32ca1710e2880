package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// leftBy shows what each kernel dataplane leaves on a machine.
var leftBy = map[string]struct{ command, mark string }{
	"iptables-nft":    {"iptables-nft-save; ip6tables-nft-save", "SALLY-"},
	"iptables-legacy": {"iptables-legacy-save; ip6tables-legacy-save", "SALLY-"},
	"nftables":        {"nft list tables", "sallyport"},
}

// TestSwitchOfDataplane restarts one edge with one dataplane after the other, and never cleans up between.
func TestSwitchOfDataplane(t *testing.T) {
	s := theSite(t)
	ns := s.webPods(t, 2)
	s.Apply(t, ns, service("switched", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30160}]"))
	host := s.Host("edge-3")
	s.routePods(t, host)
	before := s.stateOf(t, host.Name)
	var last *gate
	for _, name := range []string{"iptables-nft", "iptables-legacy", "nftables", "iptables-legacy", "iptables-nft", "userspace", "nftables", "userspace"} {
		g := s.switchTo(t, last, name)
		cluster.Eventually(t, 10*time.Second, func() error {
			return everywhere(g.addrs(), 30160, func(to netip.AddrPort) error { return s.caller().wantPods(to, 2) })
		})
		for kind, rules := range leftBy {
			if has := strings.Contains(s.run(t, host, "sh", "-c", rules.command), rules.mark); has != (kind == name) {
				t.Errorf("the edge runs with %s; that there are rules of %s is %v", name, kind, has)
			}
		}
		last = g
	}
	s.endGate(t, last, before)
}

// switchTo starts edge-3 with another dataplane than the last one, which is stopped.
func (s *site) switchTo(t *testing.T, last *gate, name string) *gate {
	t.Helper()
	if last != nil {
		if err := last.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range dataplanes {
		if d.name != name {
			continue
		}
		e, err := s.start(t, "edge-3", "reach: pods\nl4: {"+d.config+"}\n")
		if err != nil {
			t.Fatal(err)
		}
		return &gate{e, d}
	}
	t.Fatalf("there is no dataplane %s", name)
	return nil
}

// TestDriftOfGates destroys what a gate has in the kernel, in both families, and looks from outside for how long.
func TestDriftOfGates(t *testing.T) {
	s := theSite(t)
	gates := ofKernel(s.gates(t, ""))
	ns := s.webPods(t, 1)
	vips := s.vips(80)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", "ports: [{port: 8000, targetPort: serve, nodePort: 30161}]"))
	harm := map[string][]string{
		"iptables-nft":    {"ip6tables-nft -t nat -F", "ip6tables-nft -F", "ip6tables-nft -t nat -D PREROUTING -j SALLY-SERVICES"},
		"iptables-legacy": {"ip6tables-legacy -t nat -F", "ip6tables-legacy -F", "ip6tables-legacy -t nat -D PREROUTING -j SALLY-SERVICES"},
		"nftables":        {"nft flush ruleset", "nft list tables | grep sallyport | while read -r t; do nft delete $t; done", "nft list tables | grep sallyport | while read -r t; do nft flush $t; done"},
	}
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		works := func() error {
			return errors.Join(g.wantOnLink(vips), everywhere(vips, 8000, s.caller().asks), everywhere(g.addrs(), 30161, s.caller().asks))
		}
		eventually(t, works)
		mended := 2 * time.Second // a second, and one for the looking itself
		if g.name == "iptables-legacy" {
			mended = 7 * time.Second // it is looked at every 5 s
		}
		for _, command := range append(harm[g.name], "ip link delete sally0", "ip -6 route flush table local proto 83") {
			s.run(t, g.host, "sh", "-c", command)
			if err := within(mended, works); err != nil {
				t.Errorf("after %q not mended within %v: %v", command, mended, err)
			}
		}
	})
}

// wantOnLink is nil if local routes by the link sally0 lead to the addresses.
func (g *gate) wantOnLink(vips []netip.Addr) error {
	out, err := g.host.Command(context.Background(), "sh", "-c", "ip route show table local dev sally0; ip -6 route show table local dev sally0").CombinedOutput()
	for _, vip := range vips {
		if err == nil && !strings.Contains(string(out), "local "+vip.String()+" proto 83 ") {
			err = fmt.Errorf("no local route leads to %v", vip)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
