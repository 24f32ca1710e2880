package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// foreign is what an operator may have on the machine beside Sallyport, in both iptables backends.
var foreign = [][]string{
	{"iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "2222", "-j", "REDIRECT", "--to-ports", "22"},
	{"iptables-nft", "-A", "INPUT", "-s", "192.0.2.66", "-j", "DROP"},
	{"iptables-legacy", "-N", "FOREIGN"},
	{"iptables-legacy", "-A", "INPUT", "-s", "192.0.2.67", "-j", "FOREIGN"},
	{"ip", "route", "add", "203.0.113.0/24", "dev", "lo"},
	{"ip", "route", "add", "blackhole", "198.51.100.0/24", "proto", "static"},
}

func TestCleanupLeavesTheMachineAsItWas(t *testing.T) {
	s := theSite(t)
	for _, argv := range foreign {
		s.onEdge3(t, argv...)
	}
	for i, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			s.onEdge3(t, "sysctl", "-qw", fmt.Sprintf("net.ipv4.ip_forward=%d", i)) // one edge was no router before, one was
			s.onEdge3(t, "iptables-"+backend, "-P", "FORWARD", "DROP")              // as docker and ufw do
			t.Cleanup(func() { s.onEdge3(t, "iptables-"+backend, "-P", "FORWARD", "ACCEPT") })
			s.runAndCleanUp(t, backend, 30005+i, s.vip(5+i))
		})
	}
}

// runAndCleanUp compares edge-3 before, while and after it serves a Service at the node port and VIP.
func (s *site) runAndCleanUp(t *testing.T, backend string, nodePort int, vip netip.Addr) {
	ns := s.Namespace(t)
	forwarding, before := s.onEdge3(t, "sysctl", "net.ipv4.ip_forward"), s.machine(t)
	e, err := s.start(t, "edge-3", "l4: {iptablesBackend: "+backend+"}\n")
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(t, ns, hostnames+fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: hostnames}, spec: {type: LoadBalancer, loadBalancerIP: %s, selector: {app: hostnames}, ports: [{port: 80, targetPort: 9376, nodePort: %d}]}}", vip, nodePort))
	s.WaitReady(t, ns, "hostnames", 3)
	cluster.Eventually(t, 5*time.Second, func() error { return wantNames(s.client(), e.url(nodePort), 3) })
	s.compareWhileRunning(t, before, s.machine(t))
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	if err := within(5*time.Second, func() error { return wantNames(s.client(), e.url(nodePort), 3) }); err != nil {
		t.Errorf("rules do not outlive the process: %v", err)
	}
	out, err := e.cleanup(t.Context())
	if err != nil {
		t.Fatalf("cleanup: %v\n%s", err, out)
	}
	if after := s.machine(t); after != before {
		t.Errorf("cleanup said\n%s\nbefore:\n%s\nafter:\n%s", out, before, after)
	}
	if after := s.onEdge3(t, "sysctl", "net.ipv4.ip_forward"); after != forwarding {
		t.Errorf("forwarding is not as before: %s", after)
	}
	if out, err := e.cleanup(t.Context()); err != nil || !strings.Contains(out, "nothing to remove") {
		t.Errorf("a second cleanup: %v: %s", err, out)
	}
}

// compareWhileRunning checks that something of Sallyport is there, and everything that was there before.
func (s *site) compareWhileRunning(t *testing.T, before, running string) {
	if !strings.Contains(running, "SALLY-") || !strings.Contains(running, "sally0") {
		t.Fatalf("nothing of Sallyport is seen while it runs:\n%s", running)
	}
	for line := range strings.SplitSeq(before, "\n") {
		if !slices.Contains(strings.Split(running, "\n"), line) {
			t.Errorf("while Sallyport runs, this is gone: %s", line)
		}
	}
}

func (s *site) onEdge3(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := s.Host("edge-3").Command(context.Background(), argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

var (
	counters = regexp.MustCompile(`\[\d+:\d+\]`)
	comments = regexp.MustCompile(`(?m)^#.*\n`)
	lifetime = regexp.MustCompile(` (expires|used) \S+`)
)

// machine describes rules, routes, links and addresses of edge-3, without what changes by itself: counters, and tables
// whose chains are built in, empty and accepting, which the first look creates.
func (s *site) machine(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{
		{"iptables-nft-save"}, {"iptables-legacy-save"}, {"ip6tables-nft-save"},
		{"ip", "route", "show", "table", "all"}, {"ip", "rule"}, {"ip", "-brief", "link"}, {"ip", "-brief", "address"},
	} {
		out := s.onEdge3(t, argv...)
		text := lifetime.ReplaceAllString(counters.ReplaceAllString(comments.ReplaceAllString(out, ""), ""), "")
		fmt.Fprintf(&b, "%s:\n%s", argv[0], withoutEmptyTables(text))
	}
	return b.String()
}

// withoutEmptyTables drops the tables of iptables-save that hold built-in chains with policy ACCEPT and nothing else.
func withoutEmptyTables(text string) string {
	return regexp.MustCompile(`(?m)^\*\w+\n(:[A-Z]+ ACCEPT ?\n)*COMMIT\n`).ReplaceAllString(text, "")
}

func writeFile(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
