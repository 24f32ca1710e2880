package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// TestReachAutoFallsBackToNodes cuts an edge off from the pods, as a network does that does not route them.
func TestReachAutoFallsBackToNodes(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, hostnames+"---"+strings.Replace(hostnamesService, "30001", "30011", 1))
	s.WaitReady(t, ns, "hostnames", 3)
	s.onEdge3(t, "iptables-nft", "-A", "OUTPUT", "-d", "10.244.0.0/16", "-j", "DROP")
	s.onEdge3(t, "iptables-nft", "-A", "FORWARD", "-d", "10.244.0.0/16", "-j", "DROP")
	t.Cleanup(func() { s.onEdge3(t, "iptables-nft", "-F") })
	e := s.startEdge3(t, "reach: auto\n")
	cluster.Eventually(t, 10*time.Second, func() error { return wantNames(s.client(), e.url(30011), 3) })
	cluster.Eventually(t, 10*time.Second, func() error {
		if !strings.Contains(e.log(), "reach=nodes") {
			return fmt.Errorf("the log does not say that nodes are used:\n%s", e.log())
		}
		return nil
	})
	if metrics, err := e.admin("/metrics"); err != nil || !strings.Contains(metrics, `sallyport_reach_nodes{reach="nodes"} 2`) {
		t.Errorf("the metric does not say that both nodes are reached by node ports: %v", err)
	}
}

// TestManifestsServeAsTheClusterDoes hands an edge the cluster's objects as files, and then fewer of them.
func TestManifestsServeAsTheClusterDoes(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, app("files")+strings.ReplaceAll(shopIngress, "front", "files"))
	s.WaitReady(t, ns, "files", 3)
	folder := t.TempDir()
	writeFile(t, folder+"/nodes.yaml", s.Kubectl(t, "get", "nodes,ingressclasses", "-o", "yaml"))
	writeFile(t, folder+"/shop.yaml", s.Kubectl(t, "get", "svc,endpointslices,ingresses", "-n", ns, "-o", "yaml"))
	e := s.startEdge3(t, "reach: pods\n", "--manifests", folder)
	ask := func(want int) func() error {
		return func() error {
			if a := get(s.client(), e.url(80), "shop.example.com"); a.code != want {
				return fmt.Errorf("got %d %q %v, want %d", a.code, a.body, a.err, want)
			}
			return nil
		}
	}
	cluster.Eventually(t, 5*time.Second, ask(200))
	if err := os.Remove(folder + "/shop.yaml"); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, 5*time.Second, ask(404))
}

// startEdge3 runs sallyport on edge-3 for the length of the test.
func (s *site) startEdge3(t *testing.T, config string, source ...string) *edge {
	t.Helper()
	e, err := s.start(t, "edge-3", config, source...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of edge-3:\n%s", e.log())
		}
		if err := e.stop(); err != nil {
			t.Error(err)
		}
		if out, err := e.cleanup(t.Context()); err != nil {
			t.Errorf("cleanup: %v: %s", err, out)
		}
	})
	return e
}
