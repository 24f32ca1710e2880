package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"sallyport/bench/lab/cluster"
)

var lab = cluster.Shared{Options: cluster.Options{Nodes: 2, Edges: 7}}

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// A site is the cluster with its edges.
type site struct {
	*cluster.Cluster
	kubeconfig string  // of the account in deploy/rbac
	edges      []*edge // edge-1 with reach auto, edge-2 with reach nodes
}

var (
	once   sync.Once
	shared *site
)

// theSite starts the edges when the first test asks, and shows their logs after a test that failed.
func theSite(t *testing.T) *site {
	t.Helper()
	c := lab.Cluster(t)
	once.Do(func() { shared = startSite(t, c) })
	if shared == nil {
		t.Fatal("the edges did not start, see the first test that failed")
	}
	t.Cleanup(func() {
		for _, e := range shared.edges {
			if t.Failed() {
				t.Logf("log of %s:\n%s", e.host.Name, tail(e.log(), 30))
			}
		}
	})
	return shared
}

func startSite(t *testing.T, c *cluster.Cluster) *site {
	s := &site{Cluster: c}
	if err := buildProgram(c.Dir()); err != nil {
		t.Fatal(err)
	}
	s.kubeconfig = s.account(t)
	for i, reach := range []string{"auto", "nodes"} {
		e, err := s.start(t, fmt.Sprintf("edge-%d", i+1), "reach: "+reach+"\n")
		if err != nil {
			t.Fatal(err)
		}
		s.edges = append(s.edges, e)
	}
	return s
}

// start runs sallyport on the host with the lab's pools and what config adds, serving the lab's cluster or another source.
func (s *site) start(t *testing.T, host, config string, source ...string) (*edge, error) {
	dir := filepath.Join(s.Dir(), "e2e-"+host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if len(source) == 0 {
		source = []string{"--kubeconfig", s.kubeconfig}
	}
	return startEdge(s.Host(host), dir, s.config(host, config), source)
}

// config is a configuration with what every edge here needs, a folder of its own and the lab's pools, and what is added.
func (s *site) config(host, more string) string {
	return fmt.Sprintf("edge: {name: %s, stateDir: %s}\nloadBalancer:\n  ipAddressPools:\n  - {name: lab, addresses: [%q, %q]}\n",
		host, filepath.Join(s.Dir(), "e2e-"+host, "state"), s.Pool(), s.Pool6()) + more
}

// account makes the ServiceAccount of deploy/rbac and a kubeconfig with a token of it: the edges run with the
// rights that an operator is told to give them, no more.
func (s *site) account(t *testing.T) string {
	for _, file := range []string{"base.yaml", "status.yaml"} {
		rbac, err := os.ReadFile("../../../deploy/rbac/" + file)
		if err != nil {
			t.Fatal(err)
		}
		s.Apply(t, "", string(rbac))
	}
	token := strings.TrimSpace(s.Kubectl(t, "create", "token", "edge", "-n", "sallyport", "--duration", "2h"))
	config, err := clientcmd.LoadFromFile(s.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	current := config.Contexts[config.CurrentContext]
	config.AuthInfos = map[string]*api.AuthInfo{"edge": {Token: token}}
	config.Contexts = map[string]*api.Context{"edge": {Cluster: current.Cluster, AuthInfo: "edge"}}
	config.CurrentContext = "edge"
	file := filepath.Join(s.Dir(), "edge.kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// onEachEdge runs fn as a subtest for every edge.
func (s *site) onEachEdge(t *testing.T, fn func(t *testing.T, e *edge)) {
	for _, e := range s.edges {
		t.Run(e.host.Name, func(t *testing.T) { fn(t, e) })
	}
}

// client is the host without a route to any node or pod.
func (s *site) client() *cluster.Host { return s.Host("client") }

// url is an address of the edge as the client sees it.
func (e *edge) url(port int) string { return fmt.Sprintf("http://%s:%d/", e.host.Addr, port) }

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
