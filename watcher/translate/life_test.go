package translate

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/watcher/objects"
)

// TestLifeOfAService follows one Service through what its owners do to it, with all that is remembered on the way. A manifest that
// is empty takes its object away.
func TestLifeOfAService(t *testing.T) {
	const head = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n"
	slice := func(name, family, rest string) string {
		return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: %s\n%s", name, family, rest)
	}
	const http, both = `ports: [{name: http, port: 80, nodePort: 30080}]`, `ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP, nodePort: 30080}]`
	have := map[string]objects.Cluster{}
	var memo Memo
	for _, step := range []struct{ what, object, manifest, want string }{
		{"a Service without endpoints", "web", head + "spec: {type: NodePort, " + http + "}", `
service shop/web
  port http 80/TCP nodePort 30080 -> none`},
		{"an endpoint that is not ready", "a", slice("a", "IPv4", "ports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.1.0.1], conditions: {ready: false}}]"), `
service shop/web
  port http 80/TCP nodePort 30080 -> none
    endpoint 10.1.0.1:8080 serving`},
		{"it becomes ready", "a", slice("a", "IPv4", "ports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.1.0.1]}]"), `
service shop/web
  port http 80/TCP nodePort 30080 -> 10.1.0.1:8080
    endpoint 10.1.0.1:8080 ready serving`},
		{"the other family", "b", slice("b", "IPv6", "ports: [{name: http, port: 8080}]\nendpoints: [{addresses: [\"fd00::1\"]}]"), `
service shop/web
  port http 80/TCP nodePort 30080 -> 10.1.0.1:8080, [fd00::1]:8080
    endpoint 10.1.0.1:8080 ready serving
    endpoint [fd00::1]:8080 ready serving`},
		{"a second port, of the same number and another protocol", "web", head + "spec: {type: NodePort, " + both + "}", `
service shop/web
  port http 80/TCP nodePort 30080 -> 10.1.0.1:8080, [fd00::1]:8080
    endpoint 10.1.0.1:8080 ready serving
    endpoint [fd00::1]:8080 ready serving
  port dns 53/UDP nodePort 30080 -> none`},
		{"its endpoints, in the slice that there was", "a", slice("a", "IPv4", "ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]\nendpoints: [{addresses: [10.1.0.1]}]"), `
service shop/web
  port http 80/TCP nodePort 30080 -> 10.1.0.1:8080, [fd00::1]:8080
    endpoint 10.1.0.1:8080 ready serving
    endpoint [fd00::1]:8080 ready serving
  port dns 53/UDP nodePort 30080 -> 10.1.0.1:5353
    endpoint 10.1.0.1:5353 ready serving`},
		{"the first port goes", "web", head + `spec: {type: NodePort, ports: [{name: dns, port: 53, protocol: UDP, nodePort: 30080}]}`, `
service shop/web
  port dns 53/UDP nodePort 30080 -> 10.1.0.1:5353
    endpoint 10.1.0.1:5353 ready serving`},
		{"type ClusterIP", "web", head + "spec: {type: ClusterIP, " + both + "}", `
service shop/web
  port http 80/TCP -> 10.1.0.1:8080, [fd00::1]:8080
    endpoint 10.1.0.1:8080 ready serving
    endpoint [fd00::1]:8080 ready serving
  port dns 53/UDP -> 10.1.0.1:5353
    endpoint 10.1.0.1:5353 ready serving`},
		{"type ExternalName", "web", head + "spec: {type: ExternalName, externalName: example.com}", "\n"},
		{"type LoadBalancer", "web", head + "spec: {type: LoadBalancer, loadBalancerIP: 192.0.2.10, " + http + "}", `
service shop/web LoadBalancer requests 192.0.2.10 by spec.loadBalancerIP
  port http 80/TCP nodePort 30080 -> 10.1.0.1:8080, [fd00::1]:8080
    endpoint 10.1.0.1:8080 ready serving
    endpoint [fd00::1]:8080 ready serving`},
		{"left to another service proxy", "web", strings.Replace(head, "namespace: shop", "namespace: shop, labels: {service.kubernetes.io/service-proxy-name: x}", 1) + "spec: {type: NodePort, " + http + "}", "\n"},
		{"deleted", "web", "", "\n"},
		{"made again", "web", head + "spec: {type: NodePort, " + http + "}", `
service shop/web
  port http 80/TCP nodePort 30080 -> 10.1.0.1:8080, [fd00::1]:8080
    endpoint 10.1.0.1:8080 ready serving
    endpoint [fd00::1]:8080 ready serving`},
		{"the last endpoint of a family goes", "b", "", `
service shop/web
  port http 80/TCP nodePort 30080 -> 10.1.0.1:8080
    endpoint 10.1.0.1:8080 ready serving`},
		{"the last endpoint goes", "a", "", `
service shop/web
  port http 80/TCP nodePort 30080 -> none`},
	} {
		m := objects.Parse("test", []byte(step.manifest))
		if len(m.Errors)+len(m.Warnings) > 0 {
			t.Fatalf("%s: %v %v", step.what, m.Errors, m.Warnings)
		}
		have[step.object] = m.Objects // the others stay the objects that they are
		var all objects.Cluster
		for _, c := range have {
			all.Services = append(all.Services, c.Services...)
			all.EndpointSlices = append(all.EndpointSlices, c.EndpointSlices...)
		}
		got := "\n" + text(t, Translate(objects.Objects{all}, Options{IPv6: true, Memo: &memo}))
		if want := step.want + "\n"; strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s: got%s\nwant%s", step.what, got, want)
		}
	}
}
