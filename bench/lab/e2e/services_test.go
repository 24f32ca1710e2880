package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// pods is a Deployment whose pods answer /hostname, /clientip and more by HTTP, and "hostname" by UDP, on the same port.
func pods(name string, replicas, port int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {pods: %[1]s}}
  template:
    metadata: {labels: {pods: %[1]s, app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: agnhost
        args: [netexec, "--http-port=%[3]d", "--udp-port=%[3]d"]
        ports: [{name: serve, containerPort: %[3]d}, {name: serve-udp, containerPort: %[3]d, protocol: UDP}]
        readinessProbe: {httpGet: {path: /, port: %[3]d}, periodSeconds: 1}
---
`, name, replicas, port)
}

// service is a Service of both families that selects all pods; spec is the rest of it.
func service(name, spec string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {ipFamilyPolicy: RequireDualStack, selector: {app: web}, %s}}\n---\n", name, spec)
}

// TestServiceFields goes through what a Service can say of its ports, addresses and endpoints, on all dataplanes and in both
// families.
func TestServiceFields(t *testing.T) {
	s := theSite(t)
	gates := s.gates(t, "")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *site, []*gate)
	}{
		{"a port number in two protocols", twoProtocols},
		{"several ports", severalPorts},
		{"named target ports that resolve to different numbers", namedTargetPorts},
		{"served by another proxy", otherProxy},
		{"without selector", withoutSelector},
		{"changes of type", changesOfType},
		{"deleted and made again", madeAgain},
		{"external IPs", externalIPs},
		{"external IPs of Services that have no endpoints of their own", externalIPsOfOthers},
		{"cluster IPs", clusterIPsFromOutside},
		{"load balancer IPs of both families", bothVIPs},
		{"from the edge itself", fromTheEdge},
		{"no endpoints", noEndpoints},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, s, gates) })
	}
}

// webPods makes a namespace with so many pods that are ready.
func (s *site) webPods(t *testing.T, n int) (ns string) {
	t.Helper()
	ns = s.Namespace(t)
	s.Apply(t, ns, pods("web", n, 8080))
	s.WaitReady(t, ns, "web", n)
	return ns
}

func twoProtocols(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 3)
	s.Apply(t, ns, service("both", "type: NodePort, ports: [{name: t, port: 80, targetPort: serve, nodePort: 30100}, {name: u, protocol: UDP, port: 80, targetPort: serve-udp, nodePort: 30100}]"))
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		eventually(t, func() error {
			return errors.Join(
				everywhere(g.addrs(), 30100, func(to netip.AddrPort) error { return s.caller().wantPods(to, 3) }),
				everywhere(g.addrs(), 30100, func(to netip.AddrPort) error { return s.caller().wantUDPPods(to, 3) }))
		})
	})
}

func severalPorts(t *testing.T, s *site, gates []*gate) {
	ns := s.Namespace(t)
	s.Apply(t, ns, pods("a", 1, 8080)+pods("b", 2, 8081))
	s.WaitReady(t, ns, "a", 1)
	s.WaitReady(t, ns, "b", 2)
	ports := func(list ...string) string {
		return "{apiVersion: v1, kind: Service, metadata: {name: two}, spec: {ipFamilyPolicy: RequireDualStack, selector: {pods: b}, type: NodePort, ports: [" + strings.Join(list, ",") + "]}}\n---\n"
	}
	const first, second = "{name: first, port: 80, targetPort: 8081, nodePort: 30101}", "{name: second, port: 81, targetPort: 8081, nodePort: 30102}"
	want := func(port uint16, check func(netip.AddrPort) error) {
		t.Helper()
		s.onEach(t, gates, func(t *testing.T, g *gate) {
			eventually(t, func() error { return everywhere(g.addrs(), port, check) })
		})
	}
	answered := func(to netip.AddrPort) error { return s.caller().wantPods(to, 2) }
	s.Apply(t, ns, ports(first))
	want(30101, answered)
	want(30102, s.caller().wantRefused)
	s.Apply(t, ns, ports(first, second))
	want(30101, answered)
	want(30102, answered)
	s.Apply(t, ns, ports(second))
	want(30101, s.caller().wantRefused)
	want(30102, answered)
	s.Apply(t, ns, strings.Replace(ports(second), "30102", "30103", 1))
	want(30102, s.caller().wantRefused)
	want(30103, answered)
}

func namedTargetPorts(t *testing.T, s *site, gates []*gate) {
	ns := s.Namespace(t)
	s.Apply(t, ns, pods("old", 1, 8080)+pods("new", 2, 9090)+service("named", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30104}]"))
	s.WaitReady(t, ns, "old", 1)
	s.WaitReady(t, ns, "new", 2)
	s.wantNodePort(t, gates, 30104, 3)
}

// wantNodePort waits until a node port of all gates is answered by n pods.
func (s *site) wantNodePort(t *testing.T, gates []*gate, port uint16, n int) {
	t.Helper()
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		eventually(t, func() error {
			return everywhere(g.addrs(), port, func(to netip.AddrPort) error { return s.caller().wantPods(to, n) })
		})
	})
}

// wantNodePortRefused waits until a node port of all gates is refused.
func (s *site) wantNodePortRefused(t *testing.T, gates []*gate, port uint16) {
	t.Helper()
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		eventually(t, func() error { return everywhere(g.addrs(), port, s.caller().wantRefused) })
	})
}

func otherProxy(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 1)
	s.Apply(t, ns, service("other", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30105}]"))
	s.wantNodePort(t, gates, 30105, 1)
	s.Kubectl(t, "label", "-n", ns, "service/other", "service.kubernetes.io/service-proxy-name=other")
	s.wantNodePortRefused(t, gates, 30105)
	s.Kubectl(t, "label", "-n", ns, "service/other", "service.kubernetes.io/service-proxy-name-")
	s.wantNodePort(t, gates, 30105, 1)
}

func withoutSelector(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	s.Apply(t, ns, "{apiVersion: v1, kind: Service, metadata: {name: bare}, spec: {ipFamilyPolicy: RequireDualStack, type: NodePort, ports: [{name: http, port: 80, nodePort: 30106}]}}")
	s.wantNodePortRefused(t, gates, 30106)
	for i, family := range []string{"IPv4", "IPv6"} {
		var endpoints []string
		for ip := range strings.FieldsSeq(s.Kubectl(t, "get", "pods", "-n", ns, "-o", fmt.Sprintf("jsonpath={.items[*].status.podIPs[%d].ip}", i))) {
			endpoints = append(endpoints, fmt.Sprintf("{addresses: [%q]}", ip))
		}
		s.Apply(t, ns, fmt.Sprintf("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: bare-%d, labels: {kubernetes.io/service-name: bare}}, addressType: %s, ports: [{name: http, port: 8080}], endpoints: [%s]}",
			i, family, strings.Join(endpoints, ",")))
	}
	s.wantNodePort(t, gates, 30106, 2)
}

func changesOfType(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 1)
	vip := s.vip(60)
	const one = "{apiVersion: v1, kind: Service, metadata: {name: changing}, spec: {%s}}"
	ports, selector := "ports: [{port: 8000, targetPort: serve, nodePort: 30107}]", "selector: {app: web}"
	for _, tt := range []struct {
		kind, spec             string
		nodePort, loadBalancer bool
	}{
		{"ClusterIP", "type: ClusterIP, selector: {app: web}, ports: [{port: 8000, targetPort: serve}]", false, false},
		{"NodePort", "type: NodePort, " + selector + ", " + ports, true, false},
		{"LoadBalancer", "type: LoadBalancer, loadBalancerIP: " + vip.String() + ", " + selector + ", " + ports, true, true},
		{"ExternalName", "type: ExternalName, externalName: example.com", false, false},
		{"LoadBalancer again", "type: LoadBalancer, loadBalancerIP: " + vip.String() + ", " + selector + ", " + ports, true, true},
		{"ClusterIP again", "type: ClusterIP, selector: {app: web}, ports: [{port: 8000, targetPort: serve}]", false, false},
	} {
		s.replaceService(t, ns, fmt.Sprintf(one, tt.spec))
		s.onEach(t, gates, func(t *testing.T, g *gate) {
			check := func(served bool, to netip.AddrPort) error {
				if served {
					return s.caller().wantPods(to, 1)
				}
				return s.wantUnserved(to)
			}
			eventually(t, func() error {
				err := errors.Join(check(tt.nodePort, netip.AddrPortFrom(g.host.Addr, 30107)), check(tt.loadBalancer, netip.AddrPortFrom(vip, 8000)))
				if err != nil {
					return fmt.Errorf("as %s: %w", tt.kind, err)
				}
				return nil
			})
		})
	}
}

// wantUnserved is nil if nobody answers by HTTP: the connection is refused, or the address is nobody's.
func (s *site) wantUnserved(to netip.AddrPort) error {
	if name, err := s.caller().get(to, "/hostname"); err == nil {
		return fmt.Errorf("%v is answered by %s", to, name)
	}
	return nil
}

// replaceService does what "kubectl replace" does: fields that are not there any more are gone.
func (s *site) replaceService(t *testing.T, ns, manifest string) {
	t.Helper()
	file := t.TempDir() + "/service.yaml"
	writeFile(t, file, manifest)
	s.Kubectl(t, "apply", "-n", ns, "-f", file)
}

func madeAgain(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	one := service("again", "type: NodePort, ports: [{port: 80, targetPort: serve, nodePort: 30108}]")
	for range 2 {
		s.Apply(t, ns, one)
		s.wantNodePort(t, gates, 30108, 2)
		s.Delete(t, ns, one)
		s.wantNodePortRefused(t, gates, 30108)
	}
}

func externalIPs(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	inside := external(60)
	outside := []netip.Addr{netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:1::10")}
	var list []string
	for _, a := range append(append([]netip.Addr(nil), inside...), outside...) {
		list = append(list, fmt.Sprintf("%q", a))
	}
	s.Apply(t, ns, service("external", "externalIPs: ["+strings.Join(list, ",")+"], ports: [{port: 8000, targetPort: serve}]"))
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		for _, a := range outside {
			s.route(t, s.client(), netip.PrefixFrom(a, a.BitLen()), g.host.Addr, g.host.Addr6)
		}
		eventually(t, func() error {
			return everywhere(inside, 8000, func(to netip.AddrPort) error { return s.caller().wantPods(to, 2) })
		})
		if err := errors.Join(everywhere(outside, 8000, s.wantUnserved), everywhere(inside, 8001, s.wantUnserved)); err != nil {
			t.Error(err)
		}
	})
}

// externalIPsOfOthers has Services that must not be served beside one that is, on the same address: a headless one, and one
// that is a name.
func externalIPsOfOthers(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 1)
	ip := external(61)[0].String()
	s.Apply(t, ns, "{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, selector: {app: web}, externalIPs: ["+ip+"], ports: [{port: 8001, targetPort: 8080}]}}\n---\n"+
		"{apiVersion: v1, kind: Service, metadata: {name: named}, spec: {type: ExternalName, externalName: example.com, externalIPs: ["+ip+"], ports: [{port: 8002, targetPort: 8080}]}}\n---\n"+
		service("served", "externalIPs: ["+ip+"], ports: [{port: 8000, targetPort: serve}]"))
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		addr := external(61)[0]
		eventually(t, func() error { return s.caller().wantPods(netip.AddrPortFrom(addr, 8000), 1) })
		for _, port := range []uint16{8001, 8002} {
			if err := s.caller().wantRefused(netip.AddrPortFrom(addr, port)); err != nil {
				t.Error(err)
			}
		}
	})
}

func clusterIPsFromOutside(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	s.Apply(t, ns, service("inner", "ports: [{name: t, port: 80, targetPort: serve}, {name: u, protocol: UDP, port: 53, targetPort: serve-udp}]"))
	var ips []netip.Addr
	for ip := range strings.FieldsSeq(s.Kubectl(t, "get", "service/inner", "-n", ns, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		ips = append(ips, netip.MustParseAddr(ip))
	}
	if len(ips) != 2 {
		t.Fatalf("ClusterIPs %v", ips)
	}
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		eventually(t, func() error {
			return errors.Join(
				everywhere(ips, 80, func(to netip.AddrPort) error { return s.caller().wantPods(to, 2) }),
				everywhere(ips, 53, func(to netip.AddrPort) error { return s.caller().wantUDPPods(to, 2) }))
		})
	})
}

func bothVIPs(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 3)
	vips := s.vips(61)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", "ports: [{name: t, port: 8000, targetPort: serve}, {name: u, protocol: UDP, port: 8000, targetPort: serve-udp}]"))
	s.onEach(t, gates, func(t *testing.T, _ *gate) {
		eventually(t, func() error {
			return errors.Join(
				everywhere(vips, 8000, func(to netip.AddrPort) error { return s.caller().wantPods(to, 3) }),
				everywhere(vips, 8000, func(to netip.AddrPort) error { return s.caller().wantUDPPods(to, 3) }),
				everywhere(vips, 8001, s.caller().wantRefused))
		})
	})
}

// loadBalancer is a Service of type LoadBalancer with addresses, more annotations, and the rest of its spec.
func (s *site) loadBalancer(name string, vips []netip.Addr, annotations, spec string) string {
	var list []string
	for _, a := range vips {
		list = append(list, a.String())
	}
	return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s, annotations: {sallyport.io/load-balancer-ips: %q%s}}, spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: web}, %s}}\n---\n",
		name, strings.Join(list, ","), annotations, spec)
}

func fromTheEdge(t *testing.T, s *site, gates []*gate) {
	ns := s.webPods(t, 2)
	vips := s.vips(62)
	s.Apply(t, ns, s.loadBalancer("lb", vips, "", "ports: [{port: 8000, targetPort: serve, nodePort: 30109}]"))
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		self := caller{host: g.host}
		eventually(t, func() error {
			return errors.Join(
				everywhere(vips, 8000, func(to netip.AddrPort) error { return self.wantPods(to, 2) }),
				everywhere(g.addrs(), 30109, func(to netip.AddrPort) error { return self.wantPods(to, 2) }))
		})
	})
}

// noEndpoints is refused at once, also where something of the edge listens on the port. When endpoints come, they answer.
func noEndpoints(t *testing.T, s *site, gates []*gate) {
	ns := s.Namespace(t)
	vips := s.vips(63)
	s.Apply(t, ns, s.loadBalancer("none", vips, "", "ports: [{name: t, port: 8000, targetPort: serve, nodePort: 30110}, {name: u, protocol: UDP, port: 8000, targetPort: serve-udp, nodePort: 30110}]"))
	want := func(check func(netip.AddrPort) error) {
		t.Helper()
		s.onEach(t, gates, func(t *testing.T, g *gate) {
			eventuallyAt(t, vips, 8000, check)
			eventuallyAt(t, g.addrs(), 30110, check)
		})
	}
	refused := func(to netip.AddrPort) error {
		return errors.Join(s.caller().wantRefused(to), s.caller().wantUDPRefused(to))
	}
	want(refused)
	s.Apply(t, ns, pods("web", 1, 8080))
	want(func(to netip.AddrPort) error {
		return errors.Join(s.caller().wantPods(to, 1), s.caller().wantUDPPods(to, 1))
	})
	s.Scale(t, ns, "web", 0)
	want(refused)
}
