package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/bench/lab/cluster"
)

// A dataplane is one of the ways in which an edge serves L4. What a Service asks for is the same on all of them.
type dataplane struct {
	name, config string
	more         string // of the configuration, outside of l4
	kernel       bool   // it forwards packets, with rules; otherwise it takes connections, at addresses that its machine has
}

var dataplanes = []dataplane{
	{"iptables-nft", "dataplane: iptables, iptablesBackend: nft", "", true},
	{"iptables-legacy", "dataplane: iptables, iptablesBackend: legacy", "", true},
	{"nftables", "dataplane: nftables", "", true},
	{"userspace", "dataplane: userspace", "l7: {enabled: false}\n", false}, // L7 would have ports 80 and 443 of ClusterIPs
}

// Networks of externalIPs that the gates are configured to serve.
var (
	external4 = netip.MustParsePrefix("192.0.2.0/24")
	external6 = netip.MustParsePrefix("2001:db8::/64")
)

// firstGate is the number of the edge host on which the first dataplane runs; the ones before are the site's.
const firstGate = 4

// A gate is an edge with one dataplane and everything that is off by default.
type gate struct {
	*edge
	dataplane
}

// gates runs an edge for each dataplane that reaches pods by their addresses, until the test ends, with what is added to the
// section l4 of their configuration. Then it cleans up after them and compares each machine with what it was before.
func (s *site) gates(t *testing.T, more string) []*gate {
	t.Helper()
	return s.gatesReaching(t, "pods", more)
}

// gatesReaching is gates with another reach.
func (s *site) gatesReaching(t *testing.T, reach, more string) []*gate {
	t.Helper()
	return s.gatesWith(t, dataplanes, func(int) string {
		return fmt.Sprintf("reach: %s\nl4: {DATAPLANE, externalIPs: [%v, %q], clusterIPs: true%s}\n", reach, external4, external6, more)
	})
}

// gatesWith is gates of some dataplanes with a configuration of their own, by number, in which DATAPLANE is theirs.
func (s *site) gatesWith(t *testing.T, some []dataplane, config func(i int) string) []*gate {
	t.Helper()
	var all []*gate
	for i, d := range some {
		host := fmt.Sprintf("edge-%d", firstGate+i)
		if !d.kernel {
			s.routePods(t, s.Host(host))
			s.holdAddresses(t, s.Host(host))
			s.takeClusterIPs(t, s.Host(host))
		}
		before := s.stateOf(t, host)
		g := &gate{dataplane: d}
		var err error
		if g.edge, err = s.start(t, host, "status: {enabled: false}\n"+d.more+strings.Replace(config(i), "DATAPLANE", d.config, 1)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.endGate(t, g, before) })
		all = append(all, g)
	}
	return all
}

// routePods gives a host the routes to pods that an edge without privileges cannot give itself, for the length of the test.
func (s *site) routePods(t *testing.T, h *cluster.Host) {
	t.Helper()
	nodes, err := s.Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Items {
		for _, cidr := range n.Spec.PodCIDRs {
			s.route(t, h, netip.MustParsePrefix(cidr), s.Host(n.Name).Addr, s.Host(n.Name).Addr6)
		}
	}
}

// takeClusterIPs has a host take what is sent to ClusterIPs, for the length of the test: the userspace dataplane listens on them.
func (s *site) takeClusterIPs(t *testing.T, h *cluster.Host) {
	t.Helper()
	for _, cidr := range []string{cluster.ServiceCIDR, cluster.ServiceCIDR6} {
		s.run(t, h, "ip", "route", "add", "local", cidr, "dev", "lo")
		t.Cleanup(func() { s.run(t, h, "ip", "route", "del", "local", cidr, "dev", "lo") })
	}
}

// endGate stops a gate and removes what it leaves, which must be all.
func (s *site) endGate(t *testing.T, g *gate, before string) {
	if t.Failed() {
		t.Logf("log of %s, %s:\n%s", g.host.Name, g.name, tail(g.log(), 30))
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
	out, err := g.cleanup(t.Context())
	if err != nil {
		t.Errorf("%s: cleanup: %v: %s", g.name, err, out)
	}
	if after := s.stateOf(t, g.host.Name); after != before {
		t.Errorf("%s: cleanup said\n%s\nand left the machine different:\n%s", g.name, out, difference(before, after))
	}
}

// onEach runs fn as a subtest for every gate, with the client's traffic for all kinds of Service addresses routed to it.
func (s *site) onEach(t *testing.T, gates []*gate, fn func(t *testing.T, g *gate)) {
	t.Helper()
	for _, g := range gates {
		t.Run(g.name, func(t *testing.T) {
			s.routeTo(t, g)
			fn(t, g)
		})
	}
}

// routeTo sends the client's traffic for VIPs, externalIPs and ClusterIPs to the gate, for the length of the test.
func (s *site) routeTo(t *testing.T, g *gate) {
	t.Helper()
	for _, p := range []netip.Prefix{
		s.Pool(), s.Pool6(), external4, external6,
		netip.MustParsePrefix(cluster.ServiceCIDR), netip.MustParsePrefix(cluster.ServiceCIDR6),
	} {
		s.route(t, s.client(), p, g.host.Addr, g.host.Addr6)
	}
}

// route sends a host's traffic for a prefix to the one of two addresses that has its family, for the length of the test.
func (s *site) route(t *testing.T, h *cluster.Host, p netip.Prefix, via4, via6 netip.Addr) {
	t.Helper()
	via := via6
	if p.Addr().Is4() {
		via = via4
	}
	s.run(t, h, "ip", "route", "replace", p.String(), "via", via.String())
	t.Cleanup(func() { s.run(t, h, "ip", "route", "del", p.String(), "via", via.String()) })
}

// run runs a command on a host; the test fails if the command does.
func (s *site) run(t *testing.T, h *cluster.Host, argv ...string) string {
	t.Helper()
	out, err := h.Command(context.WithoutCancel(t.Context()), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %v: %s", h.Name, argv, err, out)
	}
	return string(out)
}

// addrs are the gate's addresses that NodePorts are served on, of both families.
func (g *gate) addrs() []netip.Addr { return []netip.Addr{g.host.Addr, g.host.Addr6} }

// holdAddresses makes the addresses that the tests' Services have a host's own, for the length of the test: the userspace
// dataplane listens on what is there.
func (s *site) holdAddresses(t *testing.T, h *cluster.Host) {
	t.Helper()
	var all []netip.Addr
	for n := firstVIP; n <= lastVIP; n++ {
		all = append(append(all, s.vips(n)...), external(n)...)
	}
	s.hold(t, h, "lo", all...)
}

// hold gives a link of a host more addresses, for the length of the test.
func (s *site) hold(t *testing.T, h *cluster.Host, link string, addrs ...netip.Addr) {
	t.Helper()
	batch := func(verb string) {
		script := "set -e\n"
		for _, a := range addrs {
			script += fmt.Sprintf("ip address %s %v dev %s", verb, netip.PrefixFrom(a, a.BitLen()), link)
			if a.Is6() && verb == "add" {
				script += " nodad"
			}
			script += "\n"
		}
		s.run(t, h, "sh", "-c", script)
	}
	batch("add")
	t.Cleanup(func() { batch("del") })
}

// Numbers of the addresses, in the lab's pools and among externalIPs, that the Services of the tests with gates have.
const firstVIP, lastVIP = 60, 85

// vips are the n-th addresses of the lab's pools, one of each family.
func (s *site) vips(n int) []netip.Addr {
	return []netip.Addr{s.vip(n), nth(s.Pool6(), n)}
}

// external are the n-th externalIPs that gates serve, one of each family.
func external(n int) []netip.Addr { return []netip.Addr{nth(external4, n), nth(external6, n)} }

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// rollFor is how long Deployments are rolled: SALLYPORT_ROLL, a duration, or not for long.
func rollFor(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(cmp.Or(os.Getenv("SALLYPORT_ROLL"), "10s"))
	if err != nil {
		t.Fatalf("SALLYPORT_ROLL: %v", err)
	}
	return d
}

// ofKernel are the gates that forward packets.
func ofKernel(gates []*gate) []*gate {
	return slices.DeleteFunc(slices.Clone(gates), func(g *gate) bool { return !g.kernel })
}

// eventually waits for what must hold shortly after a change in the cluster.
func eventually(t *testing.T, cond func() error) {
	t.Helper()
	cluster.Eventually(t, 10*time.Second, cond)
}

var (
	counters = regexp.MustCompile(`\[\d+:\d+\]`)
	comments = regexp.MustCompile(`(?m)^#.*\n`)
	lifetime = regexp.MustCompile(` (expires|used) \S+`)
	// ofIptables are the tables that iptables-nft makes and never removes; iptables-save shows what is in them.
	ofIptables = regexp.MustCompile(`(?m)^table ip6? (filter|nat|mangle|raw|security)\n`)
	// emptyTables are those of iptables-save that hold built-in chains with policy ACCEPT and nothing else: the first look
	// creates them.
	emptyTables = regexp.MustCompile(`(?m)^\*\w+\n(:[A-Z]+ ACCEPT ?\n)*COMMIT\n`)
)

// stateOf describes what an edge may change on its machine, in both families and all dataplanes, without what changes by itself.
func (s *site) stateOf(t *testing.T, host string) string {
	t.Helper()
	var b strings.Builder
	for _, command := range []string{
		"iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save",
		"nft list tables", "ipset list", "ip route show table all", "ip -6 route show table all", "ip rule", "ip -6 rule",
		"ip -brief link", "ip -brief address",
		"sysctl net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce net.ipv6.conf.all.forwarding net.netfilter.nf_conntrack_tcp_be_liberal",
	} {
		text := s.run(t, s.Host(host), strings.Fields(command)...)
		for _, unsteady := range []*regexp.Regexp{comments, counters, lifetime, ofIptables, emptyTables} {
			text = unsteady.ReplaceAllString(text, "")
		}
		fmt.Fprintf(&b, "%s:\n%s", command, text)
	}
	return b.String()
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	return "gone: " + strings.Join(without(was, is), "\n      ") + "\nnew:  " + strings.Join(without(is, was), "\n      ")
}

func without(lines, others []string) []string {
	known := map[string]bool{}
	for _, l := range others {
		known[l] = true
	}
	var rest []string
	for _, l := range lines {
		if !known[l] {
			rest = append(rest, l)
		}
	}
	return rest
}
