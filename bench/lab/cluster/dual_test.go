package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestDualStack holds that nodes, pods and Services have both families where a Service asks for it, and that a pod reaches
// its own node's pods through their ClusterIP, which redirects past the node's NAT would break.
func TestDualStack(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	c.Apply(t, ns, strings.Replace(fmt.Sprintf(hostnames, 4), "type: NodePort", "type: NodePort\n  ipFamilyPolicy: RequireDualStack", 1))
	c.WaitReady(t, ns, "hostnames", 4)
	port := nodePort(t, c, ns, "hostnames")
	for _, node := range []string{"node-1", "node-2"} {
		for _, addr := range []netip.Addr{c.Host(node).Addr, c.Host(node).Addr6} {
			Eventually(t, 10*time.Second, func() error { return answering(c.Host("edge-1"), addr, port, 4) })
		}
	}
	ips := strings.Fields(c.Kubectl(t, "get", "service/hostnames", "-n", ns, "-o", "jsonpath={.spec.clusterIPs[*]}"))
	pods := strings.Fields(c.Kubectl(t, "get", "pods", "-n", ns, "-o", "jsonpath={.items[*].metadata.uid}"))
	if len(ips) != 2 || len(pods) != 4 {
		t.Fatalf("ClusterIPs %v of pods %v", ips, pods)
	}
	pod := &Host{Name: "pod." + pods[0][:8], Lab: c.Name()}
	for _, ip := range ips {
		Eventually(t, 10*time.Second, func() error { return answering(pod, netip.MustParseAddr(ip), 80, 4) })
	}
}
