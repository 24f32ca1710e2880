package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// TestDriftIsMended destroys our rules in the ways that other programs and people do, and looks from outside for how long.
func TestDriftIsMended(t *testing.T) {
	s := theSite(t)
	for i, tt := range []struct {
		backend string
		within  time.Duration
	}{{"nft", time.Second}, {"legacy", 6 * time.Second}} {
		t.Run(tt.backend, func(t *testing.T) {
			ns := s.Namespace(t)
			vip, port := s.vip(12+i), 30031+i
			e := s.startEdge3(t, "l4: {iptablesBackend: "+tt.backend+"}\n")
			s.listen(t, e, 22) // stands in for the edge's sshd
			s.Apply(t, ns, hostnames+fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: hostnames}, spec: {type: LoadBalancer, loadBalancerIP: %s, selector: {app: hostnames}, ports: [{port: 80, targetPort: 9376, nodePort: %d}]}}", vip, port))
			s.WaitReady(t, ns, "hostnames", 3)
			works := func() error {
				if err := dial(s.client(), vip, 22); !errors.Is(err, syscall.ECONNREFUSED) {
					return fmt.Errorf("port 22 of the VIP: %v, want refused", err)
				}
				return errors.Join(wantAnswer(s, fmt.Sprintf("http://%s/", vip)), wantAnswer(s, e.url(port)))
			}
			cluster.Eventually(t, 10*time.Second, works)
			for _, argv := range [][]string{
				{"iptables-" + tt.backend, "-t", "nat", "-F"},
				{"iptables-" + tt.backend, "-F"},
				{"iptables-" + tt.backend, "-t", "nat", "-D", "PREROUTING", "-j", "SALLY-SERVICES"},
				{"ip", "link", "delete", "sally0"},
				{"sysctl", "-qw", "net.ipv4.ip_forward=0"},
			} {
				s.onEdge3(t, argv...)
				if err := within(tt.within+time.Second, works); err != nil { // a second for the looking itself
					t.Errorf("after %v not mended within %v: %v", argv, tt.within, err)
				}
			}
		})
	}
}

// wantAnswer is nil if the URL is answered, quickly.
func wantAnswer(s *site, url string) error {
	_, err := names(s.client(), url, 1)
	return err
}

// TestFiftyKills starts sallyport and kills it at any moment, half of the times while it writes its rules, and looks whether a
// connection from before lives and everything is right after the last start.
func TestFiftyKills(t *testing.T) {
	s := theSite(t)
	for i, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			ns := s.Namespace(t)
			vip, port := s.vip(14+i), 30088+i
			service := func(n int) string {
				return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: plain}, spec: {type: LoadBalancer, loadBalancerIP: %s, selector: {app: plain}, ports: [{name: a, port: 80, targetPort: 9376}, {name: b, port: %d, targetPort: 9376}]}}\n---\n", vip, 1000+n)
			}
			s.Apply(t, ns, app("plain")+steadyService(port)+service(0))
			s.WaitReady(t, ns, "plain", 3)
			config := "l4: {iptablesBackend: " + backend + "}\n"
			e, err := s.start(t, "edge-3", config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.endEdge3(t, e) })
			old := s.longConnection(t, e, uint16(port))
			for n := range 25 {
				s.Apply(t, ns, service(n+1)) // there is something to write
				if err := e.kill(); err != nil {
					t.Fatal(err)
				}
				old.stillAnswers(t)
				if e, err = launchEdge(e.host, e.dir, s.config("edge-3", config), []string{"--kubeconfig", s.kubeconfig}); err != nil {
					t.Fatal(err)
				}
				e.diesWithin(rand.N(400 * time.Millisecond)) // it does not, unless something is wrong
			}
			if err := e.kill(); err != nil {
				t.Fatal(err)
			}
			if e, err = s.start(t, "edge-3", config); err != nil {
				t.Fatal(err)
			}
			old.stillAnswers(t)
			cluster.Eventually(t, 10*time.Second, func() error {
				return errors.Join(wantAnswer(s, fmt.Sprintf("http://%s/", vip)), wantAnswer(s, fmt.Sprintf("http://%s:1025/", vip)), wantAnswer(s, e.url(port)))
			})
			if err := dial(s.client(), vip, 1024); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a port that the Service had before: %v, want refused", err)
			}
			if rules := s.onEdge3(t, "iptables-"+backend+"-save"); strings.Contains(rules, "--dport 1024 ") {
				t.Errorf("rules of an earlier start are left:\n%s", rules)
			}
		})
	}
}
