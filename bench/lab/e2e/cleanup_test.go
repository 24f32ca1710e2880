package e2e

import (
	"fmt"
	"net/netip"
	"os"
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
	before := s.stateOf(t, "edge-3")
	e, err := s.start(t, "edge-3", "l4: {iptablesBackend: "+backend+"}\n")
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(t, ns, hostnames+fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: hostnames}, spec: {type: LoadBalancer, loadBalancerIP: %s, selector: {app: hostnames}, ports: [{port: 80, targetPort: 9376, nodePort: %d}]}}", vip, nodePort))
	s.WaitReady(t, ns, "hostnames", 3)
	cluster.Eventually(t, 5*time.Second, func() error { return wantNames(s.client(), e.url(nodePort), 3) })
	s.compareWhileRunning(t, before, s.stateOf(t, "edge-3"))
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
	if after := s.stateOf(t, "edge-3"); after != before {
		t.Errorf("cleanup said\n%s\nand left the machine different:\n%s", out, difference(before, after))
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
		forwarding := strings.HasPrefix(line, "net.") // which may be turned on
		if !forwarding && !slices.Contains(strings.Split(running, "\n"), line) {
			t.Errorf("while Sallyport runs, this is gone: %s", line)
		}
	}
}

func (s *site) onEdge3(t *testing.T, argv ...string) string {
	t.Helper()
	return s.run(t, s.Host("edge-3"), argv...)
}

func writeFile(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
