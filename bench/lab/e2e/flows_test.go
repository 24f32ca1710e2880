package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// TestFlows goes through what becomes of a connection whose endpoint, Service or edge changes, and of those that come back to
// where they were made.
func TestFlows(t *testing.T) {
	s := theSite(t)
	gates := s.gates(t, "")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *site, []*gate)
	}{
		{"a connection outlives its endpoint and its Service", connectionLives},
		{"a flow of UDP follows the endpoints", udpFollows},
		{"a flow of UDP from before the Service", udpFromBefore},
		{"a flow of UDP and a restart of the edge", udpAndRestart},
		{"a pod calls itself through the edge", hairpin},
		{"a firewall that drops what is forwarded", forwardDrop},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, s, gates) })
	}
}

// A session is one connection by which requests are made, one after the other.
type session struct {
	net.Conn
	reader *bufio.Reader
}

func (c caller) open(t *testing.T, to netip.AddrPort) *session {
	t.Helper()
	var conn net.Conn
	eventually(t, func() (err error) { conn, err = c.dial(t.Context(), "tcp", to); return err })
	t.Cleanup(func() { conn.Close() })
	return &session{conn, bufio.NewReader(conn)}
}

// hostname asks which pod is at the other end.
func (c *session) hostname() (string, error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprint(c, "GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// connectionLives takes all pods of before from the Service, which they outlive.
func connectionLives(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	svc := service("lives", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30130}]")
	s.Apply(t, ns, svc)
	s.wantNodePort(t, gates, 30130, 2)
	sessions, names := map[*session]*gate{}, map[*session]string{}
	for _, g := range gates {
		for _, addr := range g.addrs() {
			one := s.caller().open(t, netip.AddrPortFrom(addr, 30130))
			name, err := one.hostname()
			if err != nil {
				t.Fatal(err)
			}
			sessions[one], names[one] = g, name
		}
	}
	live := func(when string) {
		t.Helper()
		for one, g := range sessions {
			if name, err := one.hostname(); name != names[one] {
				t.Errorf("%s, %v: a connection to %s is answered by %q, %v", when, g.name, names[one], name, err)
			}
		}
	}
	s.Kubectl(t, "label", "pods", "-n", ns, "-l", "app=web", "app-", "pods-") // the Deployment makes others
	s.WaitReady(t, ns, "web", 2)
	s.wantNodePort(t, gates, 30130, 2)
	live("after its endpoint was removed")
	s.Delete(t, ns, svc)
	s.wantNodePortRefused(t, gates, 30130)
	live("after its Service was deleted")
}

// A udpFlow is a client's port of UDP that keeps asking.
type udpFlow struct {
	net.Conn
	to netip.AddrPort
}

func (c caller) udpFlow(t *testing.T, to netip.AddrPort) *udpFlow {
	t.Helper()
	conn, err := c.dial(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &udpFlow{conn, to}
}

// hostname asks which pod is at the other end, without much patience.
func (f *udpFlow) hostname() (string, error) {
	if err := f.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return "", err
	}
	if _, err := f.Write([]byte("hostname")); err != nil {
		return "", err
	}
	buf := make([]byte, 256)
	n, err := f.Read(buf)
	return string(buf[:n]), err
}

// wantPod is nil if the flow is answered by a pod, or by another than that one.
func (f *udpFlow) wantPod(name string, same bool) error {
	got, err := f.hostname()
	if err == nil && (got == name) != same {
		err = fmt.Errorf("%v: answered by %q", f.to, got)
	}
	return err
}

// movesWithin is how long a flow of UDP may go where nobody is. It takes a tenth of it at most on a quiet machine; an entry of the
// kernel that is not deleted leads there for as long as the client sends.
const movesWithin = 5 * time.Second

func udpFollows(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	s.Apply(t, ns, service("udp", "type: NodePort, ports: [{protocol: UDP, port: 80, targetPort: serve-udp, nodePort: 30131}]"))
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for _, addr := range g.addrs() {
			to := netip.AddrPortFrom(addr, 30131)
			s.Apply(t, ns, pods("web", 2, 8080))
			s.WaitReady(t, ns, "web", 2)
			eventually(t, func() error { return s.caller().wantUDPPods(to, 2) })
			flow := s.caller().udpFlow(t, to)
			name, err := flow.hostname()
			if err != nil {
				t.Fatal(err)
			}
			s.Kubectl(t, "label", "pod", "-n", ns, name, "app-")
			if err := within(movesWithin, func() error { return flow.wantPod(name, false) }); err != nil {
				t.Errorf("the flow stays with an endpoint that is gone: %v", err)
			}
			s.Kubectl(t, "label", "pods", "-n", ns, "-l", "app=web", "app-")
			if err := within(movesWithin, func() error {
				_, err := flow.hostname()
				return wantError(to, err, syscall.ECONNREFUSED)
			}); err != nil {
				t.Errorf("the flow stays with the last endpoint, which is gone: %v", err)
			}
			s.Kubectl(t, "label", "pod", "-n", ns, name, "app=web")
			if err := within(movesWithin, func() error { return flow.wantPod(name, true) }); err != nil {
				t.Errorf("the flow does not find the endpoint that came: %v", err)
			}
			s.Kubectl(t, "delete", "pods", "-n", ns, "--all", "--grace-period=0", "--force")
		}
	})
}

// udpFromBefore has a client that asks all the time, from before the Service has its address.
func udpFromBefore(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 1)
	vips := s.vips(75)
	svc := s.loadBalancer("early", vips, "", "ports: [{protocol: UDP, port: 8000, targetPort: serve-udp}]")
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		for _, vip := range vips {
			flow := s.caller().udpFlow(t, netip.AddrPortFrom(vip, 8000))
			eventually(t, func() error {
				if name, err := flow.hostname(); err == nil {
					return fmt.Errorf("answered by %s", name)
				}
				return nil
			})
			s.Apply(t, ns, svc)
			cluster.Eventually(t, 3*time.Second, func() error { _, err := flow.hostname(); return err })
			s.Delete(t, ns, svc)
		}
	})
}

// udpAndRestart looks for the entry of the flow in the kernel's table, which nobody may flush.
func udpAndRestart(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 3)
	s.Apply(t, ns, service("udp", "type: NodePort, ports: [{protocol: UDP, port: 80, targetPort: serve-udp, nodePort: 30132}]"))
	s.onEach(t, ofKernel(gates), func(t *testing.T, g *gate) {
		to := netip.AddrPortFrom(g.host.Addr, 30132)
		eventually(t, func() error { return s.caller().wantUDPPods(to, 3) })
		flow := s.caller().udpFlow(t, to)
		name, err := flow.hostname()
		if err != nil {
			t.Fatal(err)
		}
		deleted := s.watchDeleted(t, g, flow)
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
		if err := flow.wantPod(name, true); err != nil {
			t.Errorf("while the edge is stopped: %v", err)
		}
		again, err := startEdge(g.host, g.dir, readFile(t, g.file("sallyport.yaml")), []string{"--kubeconfig", s.kubeconfig})
		if err != nil {
			t.Fatal(err)
		}
		*g.edge = *again
		if err := flow.wantPod(name, true); err != nil {
			t.Errorf("after a restart of the edge: %v", err)
		}
		if events := deleted(); strings.Contains(events, fmt.Sprintf("sport=%d ", flow.LocalAddr().(*net.UDPAddr).Port)) {
			t.Errorf("the restart has flushed the flow:\n%s", events)
		}
	})
}

// watchDeleted follows what the kernel's table of the gate's machine loses, and gives it when it is asked.
func (s *site) watchDeleted(t *testing.T, g *gate, flow *udpFlow) func() string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var events strings.Builder
	cmd := g.host.Command(ctx, "conntrack", "-E", "-e", "DESTROY", "-p", "udp", "--orig-port-dst", fmt.Sprint(flow.to.Port()))
	cmd.Stdout = &events
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		cancel()
		_ = cmd.Wait() // it was killed
		return events.String()
	}
}

// hairpin has a pod call its own Service, by the VIP and by the node port, over the edge and not within its node.
func hairpin(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 1)
	vips := s.vips(76)
	s.Apply(t, ns, s.loadBalancer("self", vips, "", "ports: [{port: 8000, targetPort: serve, nodePort: 30133}]"))
	pod := strings.Fields(s.Kubectl(t, "get", "pods", "-n", ns, "-o", "jsonpath={.items[0].metadata.uid} {.items[0].spec.nodeName}"))
	self := caller{host: &cluster.Host{Name: "pod." + pod[0][:8], Lab: s.Name()}}
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		node, edges := s.Host(pod[1]), []netip.Addr{g.host.NodesAddr, g.host.NodesAddr6}
		for i, p := range []netip.Prefix{s.Pool(), s.Pool6()} {
			s.route(t, node, p, edges[0], edges[1])
			own := netip.PrefixFrom(g.addrs()[i], g.addrs()[i].BitLen())
			s.route(t, node, own, edges[0], edges[1])
		}
		for i := range vips {
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(vips[i], 8000), netip.AddrPortFrom(g.addrs()[i], 30133)} {
				eventually(t, func() error { return self.wantPods(to, 1) })
				if peer, err := self.get(to, "/clientip"); err != nil || !strings.Contains(peer, edges[i].String()) {
					t.Errorf("%v: the pod is called by %s, %v; want the edge, %v", to, peer, err, edges[i])
				}
			}
		}
	})
}

// forwardDrop has the policy that docker and ufw give the machine. That nobody can lift in a table of nftables' own.
func forwardDrop(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	s.Apply(t, ns, service("dropped", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30134}]"))
	gates = slices.DeleteFunc(slices.Clone(gates), func(g *gate) bool { return g.name == "nftables" })
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for _, backend := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
			if strings.HasSuffix(g.name, "tables-nft") != strings.HasSuffix(backend, "-nft") {
				continue
			}
			s.run(t, g.host, backend, "-P", "FORWARD", "DROP")
			t.Cleanup(func() { s.run(t, g.host, backend, "-P", "FORWARD", "ACCEPT") })
		}
		eventually(t, func() error {
			return everywhere(g.addrs(), 30134, func(to netip.AddrPort) error { return s.caller().wantPods(to, 2) })
		})
	})
}

// rolling is a Deployment of 10 pods that wait before they end, or not.
func rolling(name, wait string) string {
	text := strings.Replace(pods(name, 10, 8080), "        readinessProbe", wait+"        readinessProbe", 1)
	return strings.Replace(text, "terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 10", 1)
}

const preStop = "        lifecycle: {preStop: {exec: {command: [sleep, \"2\"]}}}\n"

// TestRolling replaces the pods of a Deployment over and over while new connections come to every gate and, for comparison, to
// the node port of a node. Where pods wait for 2 s before they end, none may fail; where they end at once, the numbers are told.
func TestRolling(t *testing.T) {
	s := theSite(t)
	gates := s.gates(t, "")
	for i, tt := range []struct {
		name, wait string
	}{{"pods that wait", preStop}, {"pods that end at once", ""}} {
		t.Run(tt.name, func(t *testing.T) {
			ns, port := s.Namespace(t), uint16(30140+i)
			s.Apply(t, ns, rolling("web", tt.wait)+service("web", fmt.Sprintf("type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: %d}]", port)))
			s.WaitReady(t, ns, "web", 10)
			s.wantNodePort(t, gates, port, 10)
			var loads []*newConnections
			for _, g := range gates {
				loads = append(loads, startNewConnections(t, g.name, s.caller(), netip.AddrPortFrom(g.host.Addr, port)))
			}
			// An edge host stands for the client, which has no route to the nodes.
			peer := startNewConnections(t, "kube-proxy", caller{host: s.Host("edge-3")}, netip.AddrPortFrom(s.Host("node-1").Addr, port))
			s.roll(t, ns, "web")
			for _, l := range append(loads, peer) {
				l.report(t, tt.wait != "" && l != peer)
			}
		})
	}
}

// roll replaces all pods of a Deployment, again and again until rollFor is over, and once at least.
func (s *site) roll(t *testing.T, ns, deployment string) {
	t.Helper()
	for begun := time.Now(); ; {
		s.Kubectl(t, "rollout", "restart", "-n", ns, "deployment/"+deployment)
		s.Kubectl(t, "rollout", "status", "-n", ns, "deployment/"+deployment, "--timeout=2m")
		if time.Since(begun) > rollFor(t) {
			return
		}
	}
}

// newConnections makes one connection after the other, with a request on each.
type newConnections struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	made   int
	failed []error
}

func startNewConnections(t *testing.T, name string, from caller, to netip.AddrPort) *newConnections {
	ctx, cancel := context.WithCancel(t.Context())
	l := &newConnections{name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for ctx.Err() == nil {
			l.made++
			if _, err := from.get(to, "/hostname"); err != nil {
				l.failed = append(l.failed, err)
			}
			<-pace.C
		}
	}()
	t.Cleanup(func() { cancel(); <-l.done })
	return l
}

// report ends the load and tells how it went; strict means that nothing may have failed.
func (l *newConnections) report(t *testing.T, strict bool) {
	t.Helper()
	l.cancel()
	<-l.done
	t.Logf("%s: %d of %d connections failed", l.name, len(l.failed), l.made)
	if l.made < 100 {
		t.Errorf("%s: %d connections are no load", l.name, l.made)
	}
	if strict && len(l.failed) > 0 {
		t.Errorf("%s: %v", l.name, errors.Join(l.failed[:min(3, len(l.failed))]...))
	}
}
