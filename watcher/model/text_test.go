package model

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestWriteText(t *testing.T) {
	web := ObjectRef{Cluster: "east", Kind: "Service", Namespace: "shop", Name: "web"}
	s := Snapshot{
		Generation: 7,
		Nodes: []Node{
			{Ref: ObjectRef{Kind: "Node", Name: "n1"}, Ready: true, Reach: ReachPods, Zone: "a",
				InternalIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
				PodCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
			{Ref: ObjectRef{Kind: "Node", Name: "n2"}, Reach: ReachNodes, Leaving: true},
		},
		Services: []Service{{Ref: web, LoadBalancer: true, RequestField: "spec.loadBalancerIP",
			RequestedVIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}, VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")},
			Ports: []ServicePort{
				{Name: "http", Protocol: TCP, Port: 80, NodePort: 30080,
					Endpoints: []Endpoint{{Addr: netip.MustParseAddrPort("10.244.1.5:8080"), Node: "n1", Pod: "web-0", Zone: "a", Ready: true, Serving: true},
						{Addr: netip.MustParseAddrPort("10.244.2.5:8080"), Serving: true, Terminating: true}},
					Destinations: []Destination{{Addr: netip.MustParseAddrPort("10.0.0.2:30080"), Reach: ReachNodes, Node: "n2"},
						{Addr: netip.MustParseAddrPort("10.244.1.5:8080"), Reach: ReachPods, Node: "n1"}}},
				{Protocol: UDP, Port: 53},
			}},
			{Ref: ObjectRef{Kind: "Service", Namespace: "tel", Name: "sig"}, ExternalIPs: []netip.Addr{netip.MustParseAddr("203.0.113.9")},
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.9"), netip.MustParseAddr("fd00:96::9")}, Local: true, HealthCheckNodePort: 30900,
				SourceRanges: &SourceRanges{[]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/64")}},
				Affinity:     &Affinity{Timeout: 90 * time.Second, Exact: true}, Limits: &Limits{NewPerSecond: 20, PerClient: 100, Total: 10000}, ProxyProtocol: 2,
				Ports: []ServicePort{{Protocol: SCTP, Port: 2905,
					Endpoints: []Endpoint{{Addr: netip.MustParseAddrPort("10.244.1.5:2905"), Ready: true, Hinted: true, HintedHere: true},
						{Addr: netip.MustParseAddrPort("10.244.1.6:2905"), Ready: true, Hinted: true}},
					Destinations: []Destination{{Addr: netip.MustParseAddrPort("10.0.0.2:30005"), Reach: ReachNodes, Node: "n2", Weight: 3}}}}},
			{Ref: ObjectRef{Kind: "Service", Namespace: "tel", Name: "wide"}, SourceRanges: &SourceRanges{}, Affinity: &Affinity{Timeout: 3 * time.Hour}, Limits: &Limits{Total: 5}},
		},
		Routes: []Route{
			{Ref: ObjectRef{Kind: "Ingress", Namespace: "shop", Name: "web"}, Match: MatchDefault},
			{Ref: ObjectRef{Kind: "Ingress", Namespace: "shop", Name: "web"}, Host: "a.example.com", Path: "/cart", Match: MatchExact,
				Backends: []Backend{{Service: web, Port: 80, Weight: 9}, {Service: web, Port: 81, Weight: 1}}, RedirectHTTPS: true},
		},
		Stale: true,
		Certificates: []Certificate{
			{Ref: ObjectRef{Kind: "Secret", Namespace: "shop", Name: "tls"}, Hosts: []string{"*.b.example.com", "a.example.com"},
				NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), Default: true, Pair: &tls.Certificate{PrivateKey: "secret"}},
			{Ref: ObjectRef{Kind: "Secret", Namespace: "shop", Name: "tls-2"}, NotAfter: time.Date(2028, 1, 1, 0, 0, 0, 0, time.UTC)},
		},
		Statuses: []Status{
			{Ref: ObjectRef{Kind: "Ingress", Namespace: "shop", Name: "web"}, Addresses: []StatusAddress{{Hostname: "lb.example.net"}}},
			{Ref: web, Served: true, Marked: true, Addresses: []StatusAddress{{IP: netip.MustParseAddr("192.0.2.10"), IPMode: "Proxy"}, {IP: netip.MustParseAddr("192.0.2.11")}}},
			{Ref: ObjectRef{Kind: "Service", Namespace: "shop", Name: "says-nothing"}, Served: true},
			{Ref: ObjectRef{Kind: "Service", Namespace: "shop", Name: "was-ours"}, Marked: true},
		},
		Problems: []Problem{{Object: web, Field: "spec.x", Reason: ReasonUnsupported, Message: "no"}, {Object: web, Reason: ReasonInvalidField, Message: "bad"}},
	}
	want := `stale
node n1 Ready reach pods InternalIP 10.0.0.1,fd00::1 podCIDRs 10.244.1.0/24 zone a
node n2 NotReady reach nodes leaving
service east:shop/web LoadBalancer requests 192.0.2.10 by spec.loadBalancerIP VIPs 192.0.2.10
  port http 80/TCP nodePort 30080 -> 10.0.0.2:30080 of node n2, 10.244.1.5:8080
    endpoint 10.244.1.5:8080 ready serving pod web-0 node n1 zone a
    endpoint 10.244.2.5:8080 serving terminating
  port 53/UDP -> none
service tel/sig externalIPs 203.0.113.9 clusterIPs 10.96.0.9,fd00:96::9 Local healthCheckNodePort 30900 from 198.51.100.0/24,2001:db8::/64 affinity exactly 1m30s limits 20/s 100/client 10000 PROXY v2
  port 2905/SCTP -> 10.0.0.2:30005 of node n2 weight 3
    endpoint 10.244.1.5:2905 ready hinted-here
    endpoint 10.244.1.6:2905 ready hinted
service tel/wide from nobody affinity 3h0m0s limits 5
route any-host Default -> none by Ingress shop/web
route a.example.com Exact /cart -> east:shop/web:80 weight 9, east:shop/web:81 weight 1 by Ingress shop/web redirect https
certificate shop/tls hosts *.b.example.com,a.example.com expires 2027-01-01T00:00:00Z default
certificate shop/tls-2 expires 2028-01-01T00:00:00Z
status Ingress shop/web addresses lb.example.net
status Service east:shop/web served marked addresses 192.0.2.10 mode Proxy,192.0.2.11
status Service shop/was-ours marked
problem Service east:shop/web: spec.x: no (Unsupported)
problem Service east:shop/web: bad (InvalidField)
`
	var b strings.Builder
	if err := s.WriteText(&b); err != nil || b.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, b.String(), want)
	}
	if err := s.WriteText(brokenPipe{}); !errors.Is(err, errBroken) {
		t.Errorf("a failed write gives %v", err)
	}
}

var errBroken = errors.New("broken pipe")

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errBroken }
