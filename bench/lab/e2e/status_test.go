package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
	"sallyport/cmd/sallyport/admin"
)

// TestStatusShowsAddressesAndLosesThem looks at what kubectl shows of a Service and an Ingress while they are served and
// when they are no longer.
func TestStatusShowsAddressesAndLosesThem(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	vip := s.vip(9)
	service := func(more string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, selector: {app: front}, ports: [{port: 80, targetPort: 9376}]%s}}\n---\n", more)
	}
	s.Apply(t, ns, app("front")+service(fmt.Sprintf(", loadBalancerIP: %s", vip))+shopIngress)
	want := func(path, wanted string) func() error {
		kind, field, _ := strings.Cut(path, " ")
		return func() error {
			if got := s.Kubectl(t, "get", kind, "-n", ns, "-o", "jsonpath="+field); got != wanted {
				return fmt.Errorf("%s of %s is %q, want %q", field, kind, got, wanted)
			}
			return nil
		}
	}
	const ingress, mode, address = "ingress/shop {.status.loadBalancer.ingress[*].ip}", "service/web {.status.loadBalancer.ingress[*].ipMode}", "service/web {.status.loadBalancer.ingress[*].ip}"
	cluster.Eventually(t, 20*time.Second, want(address, vip.String()))
	cluster.Eventually(t, 10*time.Second, want(mode, "Proxy"))
	cluster.Eventually(t, 10*time.Second, want(ingress, s.writerAddress(t)))
	if shown := s.Kubectl(t, "get", "service,ingress", "-n", ns); strings.Count(shown, vip.String()) != 1 || !strings.Contains(shown, s.writerAddress(t)) {
		t.Errorf("kubectl get shows\n%s", shown)
	}
	s.Kubectl(t, "patch", "service/web", "-n", ns, "--type=merge", "-p", `{"spec":{"loadBalancerIP":null}}`)
	cluster.Eventually(t, 10*time.Second, want(address, ""))
	s.Kubectl(t, "patch", "service/web", "-n", ns, "--type=merge", "-p", fmt.Sprintf(`{"spec":{"loadBalancerIP":%q}}`, vip))
	cluster.Eventually(t, 10*time.Second, want(address, vip.String()))
	s.Kubectl(t, "patch", "service/web", "-n", ns, "--type=merge", "-p", `{"spec":{"type":"ClusterIP"}}`)
	cluster.Eventually(t, 10*time.Second, want(address, ""))
	s.Kubectl(t, "patch", "ingress/shop", "-n", ns, "--type=merge", "-p", `{"spec":{"ingressClassName":"other"}}`)
	cluster.Eventually(t, 10*time.Second, want(ingress, ""))
}

// writerAddress is the address of the edge that holds the Lease.
func (s *site) writerAddress(t *testing.T) string {
	t.Helper()
	holder, _, _ := strings.Cut(s.Kubectl(t, "get", "lease/sallyport", "-n", "sallyport", "-o", "jsonpath={.spec.holderIdentity}"), "_")
	for _, e := range s.edges {
		if e.host.Name == holder {
			return e.host.Addr.String()
		}
	}
	t.Fatalf("the Lease is held by %q", holder)
	return ""
}

// TestStatusOfAnotherControllerIsLeftAlone writes a Service's status as another controller would.
func TestStatusOfAnotherControllerIsLeftAlone(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	const service = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, loadBalancerIP: %s, selector: {app: front}, ports: [{port: 80}], loadBalancerClass: %s}}\n"
	s.Apply(t, ns, fmt.Sprintf(service, s.vip(10), "example.com/other"))
	s.Kubectl(t, "patch", "service/web", "-n", ns, "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.9"}]}}}`)
	s.Apply(t, ns, strings.NewReplacer("web", "unclassified", ", loadBalancerClass: %s", "", "%s", s.vip(10).String()).Replace(service))
	cluster.Eventually(t, 10*time.Second, func() error {
		if got := s.Kubectl(t, "get", "service/unclassified", "-n", ns, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}"); got != s.vip(10).String() {
			return fmt.Errorf("the Service without class has %q", got)
		}
		return nil
	})
	s.Kubectl(t, "delete", "service/unclassified", "-n", ns)
	s.Apply(t, ns, "{apiVersion: v1, kind: Service, metadata: {name: stolen}, spec: {type: LoadBalancer, selector: {app: front}, ports: [{port: 80}]}}\n")
	s.Kubectl(t, "patch", "service/stolen", "-n", ns, "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.10"}]}}}`)
	cluster.Eventually(t, 10*time.Second, func() error { return s.wantOneEvent(t, ns, "stolen", "ServedByOther") })
	for name, want := range map[string]string{"web": "203.0.113.9", "stolen": "203.0.113.10"} {
		if got := s.Kubectl(t, "get", "service/"+name, "-n", ns, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}"); got != want {
			t.Errorf("%s has %q, another controller wrote %s", name, got, want)
		}
	}
}

// wantOneEvent is nil if exactly one Event with the reason is on the object.
func (s *site) wantOneEvent(t *testing.T, ns, object, reason string) error {
	got := s.Kubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name="+object+",reason="+reason, "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
	if lines := strings.Count(got, "\n"); lines != 1 {
		return fmt.Errorf("%d Events %s on %s, want 1:\n%s", lines, reason, object, got)
	}
	return nil
}

// TestEventsTellOfProblemsOnce looks for the Event of a Problem, and that a change of nothing, or of the writer, brings no other.
func TestEventsTellOfProblemsOnce(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, app("good")+badObjects)
	cluster.Eventually(t, 15*time.Second, func() error { return s.wantOneEvent(t, ns, "bad", "ServiceNotFound") })
	cluster.Eventually(t, 15*time.Second, func() error { return s.wantOneEvent(t, ns, "outside", "AddressNotInPool") })
	if described := s.Kubectl(t, "describe", "ingress/bad", "-n", ns); !strings.Contains(described, "ServiceNotFound") || !strings.Contains(described, "nowhere") {
		t.Errorf("kubectl describe does not show the Problem:\n%s", described)
	}
	s.Kubectl(t, "annotate", "ingress/bad", "-n", ns, "touched=yes")
	s.Scale(t, ns, "good", 1)
	s.WaitReady(t, ns, "good", 1)
	if err := s.wantOneEvent(t, ns, "bad", "ServiceNotFound"); err != nil {
		t.Error(err)
	}
}

// TestCommandsAskTheRunningEdge types what an operator types on the edge.
func TestCommandsAskTheRunningEdge(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	vip := s.vip(11)
	s.Apply(t, ns, app("front")+app("cart")+shopIngress+fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, loadBalancerIP: %s, selector: {app: front}, ports: [{port: 80, targetPort: 9376}]}}\n", vip))
	s.WaitReady(t, ns, "front", 3)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 10*time.Second, func() error { return get(s.client(), fmt.Sprintf("http://%s/", vip), "").err })
		var status admin.Status
		if err := json.Unmarshal([]byte(e.run(t, "status", "-o", "json")), &status); err != nil || status.Edge != e.host.Name || len(status.Clusters) != 1 ||
			!status.Clusters[0].Up || status.Waiting != "" || status.Snapshot.VIPs == 0 || status.Writer == nil || status.Writer.Leader == "" {
			t.Errorf("status: %v: %+v, writer %+v", err, status, status.Writer)
		}
		for _, tt := range []struct{ target, want string }{
			{"http://shop.example.com/cart/42", "cart"},
			{"http://shop.example.com/", "front"},
			{"http://nobody.example.com/", "nobody.example.com"},
			{fmt.Sprintf("tcp://%s:80", vip), "web"},
			{fmt.Sprintf("tcp://%s:22", vip), "web"},
			{"service/" + ns + "/web", vip.String()},
		} {
			if got := e.run(t, "explain", tt.target); !strings.Contains(got, tt.want) {
				t.Errorf("explain %s does not name %s:\n%s", tt.target, tt.want, got)
			}
		}
	})
}

// run types a command of sallyport on the edge.
func (e *edge) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.host.Command(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("sallyport %v: %v: %s", args, err, out)
	}
	return string(out)
}
