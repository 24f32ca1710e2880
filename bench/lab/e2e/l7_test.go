package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
)

// app is a Deployment and a Service of one name, whose pods answer their names.
func app(name string) string {
	return strings.ReplaceAll(hostnames+`---
apiVersion: v1
kind: Service
metadata: {name: hostnames}
spec: {type: NodePort, selector: {app: hostnames}, ports: [{name: http, port: 80, targetPort: 9376}]}
`, "hostnames", name) + "\n---\n"
}

const shopIngress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop}
spec:
  ingressClassName: sallyport
  rules:
  - host: shop.example.com
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: front, port: {name: http}}}}
      - {path: /cart, pathType: Prefix, backend: {service: {name: cart, port: {number: 80}}}}
  - host: "*.api.example.com"
    http:
      paths:
      - {path: /v1, pathType: Exact, backend: {service: {name: api, port: {number: 80}}}}
      - {path: /idle, pathType: Prefix, backend: {service: {name: idle, port: {number: 80}}}}
---
apiVersion: v1
kind: Service
metadata: {name: idle}
spec: {type: NodePort, selector: {app: idle}, ports: [{port: 80}]}
`

func TestIngressByHostAndPath(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, app("front")+app("cart")+app("api")+shopIngress)
	for _, d := range []string{"front", "cart", "api"} {
		s.WaitReady(t, ns, d, 3)
	}
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		for _, tt := range []struct {
			host, path string
			code       int
			pod        string // beginning of the pod's name
		}{
			{"shop.example.com", "", 200, "front-"},
			{"shop.example.com", "other/page?q=1", 200, "front-"},
			{"SHOP.example.com", "cart", 200, "cart-"},
			{"shop.example.com:80", "cart/42", 200, "cart-"},
			{"shop.example.com", "cartoon", 200, "front-"},
			{"eu.api.example.com", "v1", 200, "api-"},
			{"eu.api.example.com", "v1/x", 404, ""},
			{"eu.api.example.com", "idle", 503, ""},
			{"a.b.api.example.com", "v1", 404, ""},
			{"other.example.com", "", 404, ""},
		} {
			cluster.Eventually(t, 5*time.Second, func() error {
				a := get(s.client(), e.url(80)+tt.path, tt.host)
				if a.err != nil || a.code != tt.code || !strings.HasPrefix(a.body, tt.pod) {
					return fmt.Errorf("%s/%s: %d %q %v, want %d %s", tt.host, tt.path, a.code, a.body, a.err, tt.code, tt.pod)
				}
				return nil
			})
		}
	})
}

// badObjects are wrong in every way that the API server lets through.
const badObjects = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: bad}
spec:
  ingressClassName: sallyport
  rules:
  - host: bad.example.com
    http:
      paths:
      - {path: /unknown, pathType: Prefix, backend: {service: {name: nowhere, port: {number: 80}}}}
      - {path: /port, pathType: Prefix, backend: {service: {name: good, port: {name: nonsense}}}}
      - {path: /good, pathType: Prefix, backend: {service: {name: good, port: {number: 80}}}}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: LoadBalancer, loadBalancerIP: 203.0.113.7, selector: {app: good}, ports: [{port: 80, targetPort: 9376}]}
`

func TestBadObjectsHarmNoOtherAndAreNamed(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, app("good")+badObjects)
	s.WaitReady(t, ns, "good", 3)
	wants := []string{"ServiceNotFound", "PortNotFound", "AddressNotInPool"}
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		for path, code := range map[string]int{"good": 200, "unknown": 503, "port": 503} {
			cluster.Eventually(t, 5*time.Second, func() error {
				if a := get(s.client(), e.url(80)+path, "bad.example.com"); a.code != code {
					return fmt.Errorf("/%s: %d %v, want %d", path, a.code, a.err, code)
				}
				return nil
			})
		}
		cluster.Eventually(t, 5*time.Second, func() error { // until what other tests made has gone
			metrics, err := e.admin("/metrics")
			for _, reason := range wants {
				if !strings.Contains(e.log(), reason) || !strings.Contains(metrics, `sallyport_problems{reason="`+reason+`"} 1`+"\n") {
					err = errors.Join(err, fmt.Errorf("%s is missing in the log or in the metric", reason))
				}
			}
			return err
		})
	})
	s.renderNames(t, ns, wants)
}

// renderNames pipes the namespace's objects through sallyport render, as the README says, and looks for the reasons.
func (s *site) renderNames(t *testing.T, ns string, wants []string) {
	file := t.TempDir() + "/all.yaml"
	all := s.Kubectl(t, "get", "svc,endpointslices,ingresses,ingressclasses", "-n", ns, "-o", "yaml")
	writeFile(t, file, all)
	out, err := s.client().Command(t.Context(), program, "render", "--config", s.edges[0].file("sallyport.yaml"), "-f", file).CombinedOutput()
	if err != nil {
		t.Fatalf("render: %v\n%s", err, out)
	}
	for _, reason := range wants {
		if !strings.Contains(string(out), reason) {
			t.Errorf("render does not name %s:\n%s", reason, out)
		}
	}
}
