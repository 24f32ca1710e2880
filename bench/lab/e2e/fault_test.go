package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

// TestNodeThatDiesIsLeftOut cuts the power of a node and gives it back.
func TestNodeThatDiesIsLeftOut(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, strings.Replace(hostnames, "replicas: 3", "replicas: 6", 1)+"---"+strings.Replace(hostnamesService, "30001", "30041", 1))
	s.WaitReady(t, ns, "hostnames", 6)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 10*time.Second, func() error { return wantAnswers(s, e.url(30041), 30) })
	})
	if err := s.StopNode("node-2"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.StartNode(ctx, "node-2"); err != nil {
			t.Error(err)
		}
	})
	s.onEachEdge(t, func(t *testing.T, e *edge) { // the control plane needs the grace period to notice
		cluster.Eventually(t, 25*time.Second, func() error { return wantAnswers(s, e.url(30041), 30) })
	})
}

// wantAnswers is nil if the URL is answered so many times in a row.
func wantAnswers(s *site, url string, tries int) error {
	_, err := names(s.client(), url, tries)
	return err
}

// TestCableOfAnEdge cuts an edge off from the nodes and the API server without a sign, and mends it.
func TestCableOfAnEdge(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, hostnames+"---"+strings.Replace(hostnamesService, "30001", "30042", 1))
	s.WaitReady(t, ns, "hostnames", 3)
	e := s.startEdge3(t, "")
	serves := func() error { return wantAnswers(s, e.url(30042), 10) }
	cluster.Eventually(t, 10*time.Second, serves)
	for _, fault := range []network.Fault{network.NoCarrier, network.Silent} {
		if err := e.host.CutCable(network.NodesLink, fault); err != nil {
			t.Fatal(err)
		}
		if err := serves(); err == nil {
			t.Error("answers come through a cable that is cut")
		}
		if err := s.ready(e); err != nil {
			t.Errorf("an edge that is cut off from the cluster is not ready: %v", err)
		}
		if err := e.host.MendCable(network.NodesLink); err != nil {
			t.Fatal(err)
		}
		cluster.Eventually(t, 15*time.Second, serves)
	}
}

// TestCredentialsThatExpire lets an edge's certificate run out, and puts a new kubeconfig in its place.
func TestCredentialsThatExpire(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, strings.Replace(hostnames, "replicas: 3", "replicas: 1", 1)+"---"+strings.Replace(hostnamesService, "30001", "30043", 1))
	s.WaitReady(t, ns, "hostnames", 1)
	kubeconfig := t.TempDir() + "/kubeconfig"
	if err := s.WriteKubeconfig(kubeconfig, "edge-3", 10*time.Second, "system:masters"); err != nil {
		t.Fatal(err)
	}
	e := s.startEdge3(t, "", "--kubeconfig", kubeconfig)
	cluster.Eventually(t, 10*time.Second, func() error { return wantNames(s.client(), e.url(30043), 1) })
	s.Kubectl(t, "annotate", "service/hostnames", "-n", ns, "asked=again") // a watch that is open outlives its certificate
	cluster.Eventually(t, 40*time.Second, func() error {
		metrics, err := e.admin("/metrics")
		if err == nil && !strings.Contains(metrics, `sallyport_api_requests_failed_total{cluster="default",code="401"}`) {
			err = errors.New("no request was refused")
		}
		return errors.Join(err, e.wantMetric(`sallyport_api_up{cluster="default"} 0`))
	})
	if err := errors.Join(s.ready(e), wantNames(s.client(), e.url(30043), 1)); err != nil {
		t.Errorf("with credentials that have expired: %v", err)
	}
	s.Scale(t, ns, "hostnames", 3)
	s.WaitReady(t, ns, "hostnames", 3)
	if err := s.WriteKubeconfig(kubeconfig, "edge-3", time.Hour, "system:masters"); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, 15*time.Second, func() error {
		return errors.Join(wantNames(s.client(), e.url(30043), 3), e.wantMetric(`sallyport_api_up{cluster="default"} 1`))
	})
}

const badHTTP = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: bad}
spec:
  selector: {matchLabels: {app: bad}}
  template:
    metadata: {labels: {app: bad}}
    spec:
      containers:
      - name: bad
        image: badhttp
        readinessProbe: {httpGet: {path: /ok, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: bad}
spec: {selector: {app: bad}, ports: [{port: 80, targetPort: 8080}], type: NodePort}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: bad}
spec:
  ingressClassName: sallyport
  rules:
  - host: bad.faults.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: bad, port: {number: 80}}}}]}
---
`

// TestBrokenAnswersStayBroken has endpoints that answer in every wrong way: what is cut short must not come out whole, and what
// is no HTTP is a 502.
func TestBrokenAnswersStayBroken(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, badHTTP)
	s.WaitReady(t, ns, "bad", 1)
	const whole, short = true, false
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 10*time.Second, func() error {
			if a := get(s.client(), e.url(80)+"ok", "bad.faults.example.com"); a.code != http.StatusOK {
				return fmt.Errorf("%d %w", a.code, a.err)
			}
			return nil
		})
		for _, tt := range []struct {
			path string
			code int
			body bool // comes whole
		}{
			{"ok", 200, whole}, {"chunked", 200, whole}, {"no-length", 200, whole}, {"http10", 200, whole}, {"trailers", 200, whole},
			{"chunked-fin", 200, short}, {"chunked-rst", 200, short}, {"chunk-fin", 200, short}, {"short-fin", 200, short}, {"short-rst", 200, short},
			{"header-fin", 502, whole}, {"no-response", 502, whole}, {"no-response-rst", 502, whole}, {"garbage", 502, whole}, {"bad-status", 502, whole},
			{"endless-header", 502, whole}, {"two-lengths", 502, whole}, {"negative-length", 502, whole}, {"length-and-chunked", 200, whole}, // RFC 9112 6.3: chunked is what counts
			{"switch", 502, whole}, {"close-after", 200, whole}, {"reset-after", 200, whole}, {"ok", 200, whole},
		} {
			code, err := s.fetch(e, tt.path)
			if code != tt.code || (err == nil) != tt.body {
				t.Errorf("/%s: %d, %v; want %d, whole %v", tt.path, code, err, tt.code, tt.body)
			}
		}
	})
}

// fetch requests a path of the broken endpoint, and reads the answer as strictly as a client can.
func (s *site) fetch(e *edge, path string) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(80)+path, nil)
	if err != nil {
		return 0, err
	}
	req.Host = "bad.faults.example.com"
	resp, err := s.client().HTTPClient().Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
