package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestServicePolicies goes through who may connect, to which of the endpoints, and how often.
func TestServicePolicies(t *testing.T) {
	s := theSite(t)
	gates := s.gates(t, "")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *site, []*gate)
	}{
		{"source ranges", sourceRanges},
		{"source ranges of one family", sourceRangesOfOneFamily},
		{"a thousand source ranges", manySourceRanges},
		{"session affinity", sessionAffinity},
		{"session affinity with its timeout", affinityTimeout},
		{"new connections a second", limitNew},
		{"connections of a client", limitPerClient},
		{"connections of all clients", limitTotal},
		{"external traffic policy Local", localPolicy},
		{"nodes that take no new connections", leavingNodes},
		{"terminating endpoints", terminatingEndpoints},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, s, gates) })
	}
}

// prefixes writes the callers' addresses as a YAML list of single addresses.
func prefixes(all ...caller) string {
	var list []string
	for _, c := range all {
		list = append(list, fmt.Sprintf("%q", netip.PrefixFrom(c.local, c.local.BitLen())))
	}
	return strings.Join(list, ", ")
}

// bothCallers gives the client n more addresses of each family. The first index is the family, as in vips.
func (s *site) bothCallers(t *testing.T, n int, vips []netip.Addr) [][]caller {
	t.Helper()
	return [][]caller{s.callers(t, n, vips[0]), s.callers(t, n, vips[1])}
}

func sourceRanges(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	vips := s.vips(64)
	external := external(64)
	callers := s.bothCallers(t, 2, vips)
	closed := s.loadBalancer("lb", vips, "", fmt.Sprintf("loadBalancerSourceRanges: [%s], externalIPs: [%q, %q], ports: [{name: t, port: 8000, targetPort: serve, nodePort: 30111}, {name: u, protocol: UDP, port: 8000, targetPort: serve-udp}]",
		prefixes(callers[0][0], callers[1][0]), external[0], external[1]))
	s.Apply(t, ns, closed)
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for i, vip := range vips {
			allowed, forbidden, to := callers[i][0], callers[i][1], netip.AddrPortFrom(vip, 8000)
			eventually(t, func() error {
				_, err := forbidden.udp(to, "hostname")
				return errors.Join(allowed.wantPods(to, 2), allowed.wantUDPPods(to, 2), forbidden.wantDropped(to), wantTimeout(to, err))
			})
			if err := errors.Join(forbidden.wantPods(netip.AddrPortFrom(external[i], 8000), 2), forbidden.wantPods(netip.AddrPortFrom(g.addrs()[i], 30111), 2)); err != nil {
				t.Errorf("where the ranges do not hold: %v", err)
			}
		}
	})
	s.Apply(t, ns, strings.Replace(closed, "loadBalancerSourceRanges: ["+prefixes(callers[0][0], callers[1][0])+"], ", "", 1))
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		for i, vip := range vips {
			eventually(t, func() error { return callers[i][1].wantPods(netip.AddrPortFrom(vip, 8000), 2) })
		}
	})
}

// sourceRangesOfOneFamily closes the other one.
func sourceRangesOfOneFamily(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 1)
	vips := s.vips(65)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", `loadBalancerSourceRanges: ["0.0.0.0/0"], ports: [{port: 8000, targetPort: serve}]`))
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		eventually(t, func() error {
			return errors.Join(s.caller().wantPods(netip.AddrPortFrom(vips[0], 8000), 1), s.caller().wantDropped(netip.AddrPortFrom(vips[1], 8000)))
		})
	})
}

func manySourceRanges(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 1)
	vips := s.vips(66)
	callers := s.bothCallers(t, 2, vips)
	var list []string
	for i := range 500 {
		list = append(list, fmt.Sprintf(`"172.%d.%d.0/24", "2001:db8:%x::/48"`, 16+i/250, i%250, i+16))
	}
	list = append(list, prefixes(callers[0][0], callers[1][0]))
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", "loadBalancerSourceRanges: ["+strings.Join(list, ", ")+"], ports: [{port: 8000, targetPort: serve}]"))
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		for i, vip := range vips {
			to := netip.AddrPortFrom(vip, 8000)
			eventually(t, func() error { return errors.Join(callers[i][0].wantPods(to, 1), callers[i][1].wantDropped(to)) })
		}
	})
}

// TestSourceRangesOnNodePorts has them hold there, too.
func TestSourceRangesOnNodePorts(t *testing.T) {
	s := theSite(t)
	gates := s.gates(t, ", sourceRangesOnNodePorts: true")
	ns := s.webPods(t, 1)
	vips := s.vips(67)
	callers := s.bothCallers(t, 2, vips)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", fmt.Sprintf("loadBalancerSourceRanges: [%s], ports: [{port: 8000, targetPort: serve, nodePort: 30112}]", prefixes(callers[0][0], callers[1][0]))))
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for i, addr := range g.addrs() {
			to := netip.AddrPortFrom(addr, 30112)
			eventually(t, func() error { return errors.Join(callers[i][0].wantPods(to, 1), callers[i][1].wantDropped(to)) })
		}
	})
}

// wantTimeout is nil if a datagram was not answered, not even refused.
func wantTimeout(to netip.AddrPort, got error) error {
	if timeout := net.Error(nil); errors.As(got, &timeout) && timeout.Timeout() {
		return nil
	}
	return fmt.Errorf("%v: a datagram got %v, want no answer", to, got)
}

// manyCallers is how many addresses see all of three pods, but for a probability of 3e-7.
const manyCallers = 40

func sessionAffinity(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 3)
	vips := s.vips(68)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", "sessionAffinity: ClientIP, ports: [{port: 8000, targetPort: serve, nodePort: 30113}]"))
	callers := s.bothCallers(t, manyCallers, vips)
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for i, vip := range vips {
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(vip, 8000), netip.AddrPortFrom(g.addrs()[i], 30113)} {
				eventually(t, func() error { return errors.Join(s.caller().wantPods(to, 1), wantSpread(callers[i], to, 3)) })
			}
		}
	})
}

// wantSpread is nil if callers are answered by n different pods.
func wantSpread(callers []caller, to netip.AddrPort, n int) error {
	names, err := answerers(callers, to)
	got := map[string]bool{}
	for _, name := range names {
		got[name] = true
	}
	if err == nil && len(got) != n {
		err = fmt.Errorf("%d callers of %v are answered by %d pods, want %d: %v", len(callers), to, len(got), n, got)
	}
	return err
}

// answerers tells which pod answers each caller.
func answerers(callers []caller, to netip.AddrPort) ([]string, error) {
	names := make([]string, len(callers))
	for i, c := range callers {
		var err error
		if names[i], err = c.get(to, "/hostname"); err != nil {
			return nil, fmt.Errorf("caller %v of %v: %w", c.local, to, err)
		}
	}
	return names, nil
}

// affinityTimeout has each client keep its pod while pods are added, and forget it after the timeout.
func affinityTimeout(t *testing.T, s *site, gates []*gate) {
	const timeout = 5 * time.Second
	ns := s.webPods(t, 2)
	vips := s.vips(69)
	s.Apply(t, ns, s.loadBalancer("lb", vips, ", sallyport.io/session-affinity: timeout",
		fmt.Sprintf("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: %.0f}}, ports: [{port: 8000, targetPort: serve}]", timeout.Seconds())))
	callers := s.bothCallers(t, manyCallers, vips)
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		s.Scale(t, ns, "web", 2)
		s.WaitReady(t, ns, "web", 2)
		var first [2][]string
		for i, vip := range vips {
			eventually(t, func() (err error) {
				first[i], err = answerers(callers[i], netip.AddrPortFrom(vip, 8000))
				return errors.Join(err, wantSpread(callers[i], netip.AddrPortFrom(vip, 8000), 2))
			})
		}
		s.Scale(t, ns, "web", 8)
		for i, vip := range vips { // whoever comes for the first time shows that the new pods are used
			eventually(t, func() error {
				again, err := answerers(callers[i], netip.AddrPortFrom(vip, 8000))
				if moved := different(first[i], again); err == nil && moved != 0 {
					t.Errorf("%v: %d of %d clients lost their pod before the timeout", vip, moved, len(again))
				}
				return errors.Join(err, s.readyEndpointsOf(ns, "lb", 8))
			})
		}
		idle(t, timeout+time.Second)
		for i, vip := range vips {
			again, err := answerers(callers[i], netip.AddrPortFrom(vip, 8000))
			if moved := different(first[i], again); err != nil || moved == 0 {
				t.Errorf("%v: after the timeout no client of %d has another of 8 pods, %v", vip, len(again), err)
			}
		}
	})
}

func different(a, b []string) int {
	n := 0
	for i := range b {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// readyEndpointsOf is nil when the Service has exactly n ready endpoints of each family.
func (s *site) readyEndpointsOf(ns, service string, n int) error {
	return s.readyEndpoints(ns, service, 2*n)
}

// idle does nothing for so long: that nothing comes is what makes a timeout pass.
func idle(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// onNode is a Deployment whose pods are all on one node.
func onNode(name, node string, replicas int) string {
	return strings.Replace(pods(name, replicas, 8080), "    spec:\n      terminationGracePeriodSeconds", "    spec:\n      nodeSelector: {kubernetes.io/hostname: "+node+"}\n      terminationGracePeriodSeconds", 1)
}

// twoNodes makes a namespace with so many pods on each of the nodes.
func (s *site) twoNodes(t *testing.T, first, second int) (ns string) {
	t.Helper()
	ns = s.Namespace(t)
	s.Apply(t, ns, onNode("first", "node-1", first)+onNode("second", "node-2", second))
	s.WaitReady(t, ns, "first", first)
	s.WaitReady(t, ns, "second", second)
	return ns
}

// localPolicy has the pods of all nodes answer evenly, where they are reached.
func localPolicy(t *testing.T, s *site, gates []*gate) {
	ns := s.twoNodes(t, 3, 1)
	s.Apply(t, ns, service("local", "type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, targetPort: serve, nodePort: 30114}]"))
	s.wantNodePort(t, gates, 30114, 4)
}

// leavingNodes are those that a load balancer is told to leave alone: their pods get new connections only if there are no others.
func leavingNodes(t *testing.T, s *site, gates []*gate) {
	ns := s.twoNodes(t, 1, 2)
	s.Apply(t, ns, service("leaving", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30115}]"))
	s.wantNodePort(t, gates, 30115, 3)
	for _, tt := range []struct{ set, unset []string }{
		{[]string{"label", "node/node-2", "node.kubernetes.io/exclude-from-external-load-balancers="}, []string{"label", "node/node-2", "node.kubernetes.io/exclude-from-external-load-balancers-"}},
		{[]string{"taint", "node", "node-2", "ToBeDeletedByClusterAutoscaler=1:PreferNoSchedule"}, []string{"taint", "node", "node-2", "ToBeDeletedByClusterAutoscaler-"}},
	} {
		s.whileSet(t, tt.set, tt.unset, func() { s.wantNodePort(t, gates, 30115, 1) })
		s.wantNodePort(t, gates, 30115, 3)
	}
	s.whileSet(t, []string{"cordon", "node-2"}, []string{"uncordon", "node-2"}, func() { s.wantNodePort(t, gates, 30115, 3) })
	s.Scale(t, ns, "first", 0)
	s.wantNodePort(t, gates, 30115, 2)
	s.whileSet(t, []string{"label", "node/node-2", "node.kubernetes.io/exclude-from-external-load-balancers="}, []string{"label", "node/node-2", "node.kubernetes.io/exclude-from-external-load-balancers-"},
		func() { s.wantNodePort(t, gates, 30115, 2) })
}

// whileSet runs fn between two runs of kubectl, of which the second takes back the first.
func (s *site) whileSet(t *testing.T, set, unset []string, fn func()) {
	t.Helper()
	s.Kubectl(t, set...)
	defer s.Kubectl(t, unset...)
	fn()
}

// terminatingEndpoints are used while no other is ready (KEP-1669), and no longer when one is.
func terminatingEndpoints(t *testing.T, s *site, gates []*gate) {
	ns := s.Namespace(t)
	slow := strings.NewReplacer("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 120", `args: [netexec, `, `args: [netexec, --delay-shutdown=100, `).Replace(pods("slow", 2, 8080))
	s.Apply(t, ns, slow+service("ending", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30116}]"))
	s.WaitReady(t, ns, "slow", 2)
	s.Scale(t, ns, "slow", 0)
	eventually(t, func() error { return s.readyEndpoints(ns, "ending", 0) })
	s.wantNodePort(t, gates, 30116, 2)
	s.Apply(t, ns, pods("ready", 1, 8080))
	s.WaitReady(t, ns, "ready", 1)
	s.wantNodePort(t, gates, 30116, 1)
	s.Kubectl(t, "delete", "pods", "-n", ns, "-l", "pods=slow", "--force", "--grace-period=0")
}
