package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// entryNodes gives the nodes that each of 2,000 node ports is sent to, in a cluster of the numbered nodes.
func entryNodes(numbers []int) map[uint16][]string {
	const ports = 2000
	c := objects.Cluster{}
	for _, i := range numbers {
		c.Nodes = append(c.Nodes, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i)},
			Status: corev1.NodeStatus{
				Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.0.2.%d", i)}},
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		})
	}
	t := newTranslator(c, Options{Reach: model.ReachNodes}, new(CertificateCache).round(), &model.Snapshot{})
	t.readNodes()
	out := map[uint16][]string{}
	endpoint := []model.Endpoint{{Addr: netip.MustParseAddrPort("10.1.0.1:80"), Ready: true}}
	for port := uint16(30000); port < 30000+ports; port++ {
		s := service{network: &t.network, Service: new(corev1.Service), result: new(backendService)}
		for _, d := range s.byNodes(endpoint, ipv4, port) {
			out[port] = append(out[port], d.Node)
		}
	}
	return out
}

func TestManyNodesShareTheNodePorts(t *testing.T) {
	var hundred []int
	for i := range 100 {
		hundred = append(hundred, i+1)
	}
	before := entryNodes(hundred)
	load := map[string]int{}
	for port, nodes := range before {
		if len(nodes) != maxEntries {
			t.Fatalf("node port %d goes to %d nodes, want %d", port, len(nodes), maxEntries)
		}
		for _, n := range nodes {
			load[n]++
		}
	}
	mean := len(before) * maxEntries / len(hundred)
	for n, ports := range load {
		if ports > 3*mean {
			t.Errorf("%s takes %d node ports, the mean is %d", n, ports, mean)
		}
	}
	if len(load) < 95 {
		t.Errorf("only %d of 100 nodes take any traffic", len(load))
	}
	changed := 0
	for port, nodes := range entryNodes(hundred[1:]) {
		if !slices.Equal(nodes, before[port]) {
			changed++
		}
	}
	if got := load["node-1"]; changed != got {
		t.Errorf("without node-1 %d node ports changed, want the %d that it took", changed, got)
	}
}
