package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/bench/lab/cluster"
)

// hostnames is a Deployment of 3 pods that answer their names on port 9376.
const hostnames = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hostnames}
spec:
  replicas: 3
  selector: {matchLabels: {app: hostnames}}
  template:
    metadata: {labels: {app: hostnames}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: hostnames
        image: registry.k8s.io/e2e-test-images/agnhost:2.59
        args: [serve-hostname]
        readinessProbe: {httpGet: {path: /, port: 9376}, periodSeconds: 1}
`

// hostnamesService exposes them at a node port.
const hostnamesService = `
apiVersion: v1
kind: Service
metadata: {name: hostnames}
spec:
  type: NodePort
  selector: {app: hostnames}
  ports: [{port: 80, targetPort: 9376, nodePort: 30001}]
`

// web listens on port 80 in its pods and on 8080 as a Service.
const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: agnhost, command: [/agnhost, serve-hostname, --port=80]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 8080, targetPort: 80, nodePort: 30000}]
`

func TestNodePortAnswersFromEveryPodAndFollowsScale(t *testing.T) {
	s := theSite(t)
	const ns = "kube-system"
	s.Apply(t, ns, hostnames+"---"+hostnamesService)
	t.Cleanup(func() { s.Delete(t, ns, hostnames+"---"+hostnamesService) })
	s.WaitReady(t, ns, "hostnames", 3)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 5*time.Second, func() error { return wantNames(s.client(), e.url(30001), 3) })
	})
	for _, n := range []int{5, 1} {
		s.Kubectl(t, "scale", "-n", ns, "deployment/hostnames", fmt.Sprintf("--replicas=%d", n))
		cluster.Eventually(t, 20*time.Second, func() error { return s.readyEndpoints(ns, "hostnames", n) })
		s.onEachEdge(t, func(t *testing.T, e *edge) {
			cluster.Eventually(t, 2*time.Second, func() error { return wantNames(s.client(), e.url(30001), n) })
		})
	}
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		if out, err := s.client().Command(t.Context(), "curl", "-sS", e.url(30001)).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "hostnames-") {
			t.Errorf("curl: %v: %s", err, out)
		}
	})
}

// readyEndpoints is nil when the Service's slices hold exactly n ready endpoints.
func (s *site) readyEndpoints(ns, service string, n int) error {
	list, err := s.Client().DiscoveryV1().EndpointSlices(ns).List(context.Background(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	if err != nil {
		return err
	}
	ready := 0
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready++
			}
		}
	}
	if ready != n {
		return fmt.Errorf("Service %s has %d ready endpoints, want %d", service, ready, n)
	}
	return nil
}

func TestNodePortOfAServiceWithOtherPorts(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, web)
	s.WaitReady(t, ns, "web", 3)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 5*time.Second, func() error { return wantNames(s.client(), e.url(30000), 3) })
	})
}

func TestNodePortWithoutEndpointsRefuses(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	for _, e := range s.edges { // what listens there would answer if nothing refused for the Service
		s.listen(t, e, 30009)
		if err := dial(s.client(), e.host.Addr, 30009); err != nil {
			t.Fatal(err)
		}
	}
	s.Apply(t, ns, `{apiVersion: v1, kind: Service, metadata: {name: none}, spec: {type: NodePort, selector: {app: none}, ports: [{port: 80, nodePort: 30009}]}}`)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 5*time.Second, func() error {
			if err := dial(s.client(), e.host.Addr, 30009); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("got %v, want a refusal", err)
			}
			return nil
		})
	})
}

func TestUDPEcho(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: udp}
spec:
  replicas: 2
  selector: {matchLabels: {app: udp}}
  template:
    metadata: {labels: {app: udp}}
    spec: {containers: [{name: udp, image: agnhost, args: [netexec, --udp-port=8081], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: udp}
spec:
  type: NodePort
  selector: {app: udp}
  ports: [{port: 53, protocol: UDP, targetPort: 8081, nodePort: 30053}]
`)
	s.WaitReady(t, ns, "udp", 2)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 5*time.Second, func() error {
			got, err := ask(s.client(), e.host.Addr, 30053, "echo through the gate")
			if err == nil && got != "through the gate" {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
	})
}

func TestLoadBalancerIP(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, hostnames)
	s.WaitReady(t, ns, "hostnames", 3)
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		vip := s.vip(3)
		s.routePool(t, e)
		s.listen(t, e, 22)
		service := fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: lb}, spec: {type: LoadBalancer, loadBalancerIP: %q, selector: {app: hostnames}, ports: [{port: 80, targetPort: 9376}]}}", vip)
		s.Apply(t, ns, service)
		cluster.Eventually(t, 5*time.Second, func() error { return wantNames(s.client(), "http://"+vip.String()+"/", 3) })
		if err := dial(s.client(), e.host.Addr, 22); err != nil {
			t.Errorf("the edge's own port 22 does not answer: %v", err)
		}
		if err := dial(s.client(), vip, 22); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port 22 of the VIP gives %v, want a refusal", err)
		}
		s.Delete(t, ns, service)
		cluster.Eventually(t, 5*time.Second, func() error {
			if a := get(s.client(), "http://"+vip.String()+"/", ""); a.err == nil {
				return errors.New("the address still answers")
			}
			return nil
		})
	})
}

func TestLoadBalancerIPByAnnotation(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, hostnames)
	s.WaitReady(t, ns, "hostnames", 3)
	vip := s.vip(4)
	s.routePool(t, s.edges[0])
	s.Apply(t, ns, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: lb, annotations: {sallyport.io/load-balancer-ips: %q}}, spec: {type: LoadBalancer, selector: {app: hostnames}, ports: [{port: 8000, targetPort: 9376}]}}", vip))
	cluster.Eventually(t, 5*time.Second, func() error { return wantNames(s.client(), "http://"+vip.String()+":8000/", 3) })
}

// vip is the n-th address of the lab's pool.
func (s *site) vip(n int) netip.Addr {
	a := s.Pool().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// routePool sends the client's traffic for VIPs to the edge for the length of the test.
func (s *site) routePool(t *testing.T, e *edge) {
	route := []string{"route", "replace", s.Pool().String(), "via", e.host.Addr.String()}
	if out, err := s.client().Command(t.Context(), "ip", route...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", route, err, out)
	}
	t.Cleanup(func() {
		if out, err := s.client().Command(context.WithoutCancel(t.Context()), "ip", "route", "del", s.Pool().String()).CombinedOutput(); err != nil {
			t.Errorf("remove the route to %v: %v: %s", s.Pool(), err, out)
		}
	})
}

// listen accepts connections on every address of the edge, as sshd does, for the length of the test.
func (s *site) listen(t *testing.T, e *edge, port int) {
	var l net.Listener
	err := e.host.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // connections wait in its backlog: that they are established is what is asked
}
