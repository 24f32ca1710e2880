package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// TestReachNodes sends connections to nodes, which alone know where the pods are.
func TestReachNodes(t *testing.T) {
	s := theSite(t)
	gates := s.gatesReaching(t, "nodes", "")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *site, []*gate)
	}{
		{"both families", func(t *testing.T, s *site, gates []*gate) {
			ns := s.twoNodes(t, 1, 2)
			s.Apply(t, ns, service("plain", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30117}]"))
			s.wantNodePort(t, gates, 30117, 3)
		}},
		{"Local", localNodes},
		{"Local by weight", localWeights},
		{"a node that says it is not healthy", unhealthyNode},
		{"excluded node", excludedNode},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, s, gates) })
	}
}

const local = "type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, targetPort: serve, nodePort: %d}]"

// localNodes leaves out the node that would drop what comes.
func localNodes(t *testing.T, s *site, gates []*gate) {
	ns := s.twoNodes(t, 2, 0)
	s.Apply(t, ns, service("local", fmt.Sprintf(local, 30118)))
	s.wantNodePort(t, gates, 30118, 2)
	s.Scale(t, ns, "second", 1)
	s.wantNodePort(t, gates, 30118, 3)
	s.Scale(t, ns, "first", 0)
	s.wantNodePort(t, gates, 30118, 1)
}

// localWeights gives a node with three pods three times the connections of one with one pod.
func localWeights(t *testing.T, s *site, gates []*gate) {
	ns := s.twoNodes(t, 3, 1)
	s.Apply(t, ns, service("local", fmt.Sprintf(local, 30119)))
	s.wantNodePort(t, gates, 30119, 4)
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for _, addr := range g.addrs() {
			const asked = 300
			second := 0
			for range asked {
				name, err := s.caller().get(netip.AddrPortFrom(addr, 30119), "/hostname")
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(name, "second-") {
					second++
				}
			}
			if second < asked/8 || second > asked*3/8 { // 5 standard deviations around a quarter
				t.Errorf("%v: one pod of four on a node of its own has %d of %d connections, want a quarter", addr, second, asked)
			}
		}
	})
}

// unhealthyNode stops the program that answers at healthCheckNodePort, and not the one that forwards.
func unhealthyNode(t *testing.T, s *site, gates []*gate) {
	ns := s.twoNodes(t, 1, 2)
	s.Apply(t, ns, s.loadBalancer("local", s.vips(73), "", "externalTrafficPolicy: Local, ports: [{port: 80, targetPort: serve, nodePort: 30120}]"))
	s.wantNodePort(t, gates, 30120, 3)
	if err := s.StopProgram("kube-proxy@node-1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.StartNode(ctx, "node-1"); err != nil {
			t.Error(err)
		}
	})
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		cluster.Eventually(t, 20*time.Second, func() error {
			return everywhere(g.addrs(), 30120, func(to netip.AddrPort) error { return s.caller().wantPods(to, 2) })
		})
	})
}

func excludedNode(t *testing.T, s *site, gates []*gate) {
	ns := s.twoNodes(t, 1, 2)
	s.Apply(t, ns, service("local", fmt.Sprintf(local, 30121)))
	s.wantNodePort(t, gates, 30121, 3)
	s.whileSet(t, []string{"label", "node/node-2", "node.kubernetes.io/exclude-from-external-load-balancers=true"},
		[]string{"label", "node/node-2", "node.kubernetes.io/exclude-from-external-load-balancers-"}, func() { s.wantNodePort(t, gates, 30121, 1) })
	s.wantNodePort(t, gates, 30121, 3)
}
