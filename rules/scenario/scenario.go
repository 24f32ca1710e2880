// Package scenario makes snapshots from words, for the tests of the packages in this folder.
package scenario

import (
	"fmt"
	"net/netip"
	"strings"

	"sallyport/watcher/model"
)

// Service makes a Service from words: its VIPs, and for each port "protocol port nodePort: destinations".
//
//	Service("web", "198.51.100.10", "TCP 80 30001: 10.1.0.2:9376 10.1.0.3:9376")
func Service(name, vips string, ports ...string) model.Service {
	svc := model.Service{Ref: model.ObjectRef{Kind: "Service", Namespace: "default", Name: name}}
	for v := range strings.FieldsSeq(vips) {
		svc.VIPs = append(svc.VIPs, netip.MustParseAddr(v))
	}
	for _, p := range ports {
		var sp model.ServicePort
		listen, to, _ := strings.Cut(p, ":")
		if _, err := fmt.Sscan(listen, &sp.Protocol, &sp.Port, &sp.NodePort); err != nil {
			panic(fmt.Sprintf("service port %q: %v", p, err))
		}
		for d := range strings.FieldsSeq(to) {
			sp.Destinations = append(sp.Destinations, model.Destination{Addr: netip.MustParseAddrPort(d), Reach: model.ReachPods, Node: "node-1"})
		}
		svc.Ports = append(svc.Ports, sp)
	}
	return svc
}

// Destinations lists n pods' addresses, for use in Service.
func Destinations(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " 10.1.%d.%d:9376", i/250, i%250+2)
	}
	return b.String()
}

// Snapshot has the services, and one node with podCIDR 10.1.0.0/24 at 10.0.0.11.
func Snapshot(services ...model.Service) *model.Snapshot {
	return &model.Snapshot{Services: services, Nodes: []model.Node{Node("node-1", NodeIP, "10.1.0.0/24")}}
}

// NodeIP is the InternalIP of the node in Snapshot.
const NodeIP = "10.0.0.11"

// Node makes a Node that is Ready and whose pods are routed.
func Node(name, internalIP, podCIDR string) model.Node {
	return model.Node{
		Ref:         model.ObjectRef{Kind: "Node", Name: name},
		InternalIPs: []netip.Addr{netip.MustParseAddr(internalIP)},
		PodCIDRs:    []netip.Prefix{netip.MustParsePrefix(podCIDR)},
		Ready:       true,
		Reach:       model.ReachPods,
	}
}

// ManyServices makes n Services, each with a VIP from 198.18.0.0/15, and NodePorts as far as they go.
func ManyServices(n, endpoints int) *model.Snapshot {
	s := Snapshot()
	for i := range n {
		nodePort := 0
		if i < 2768 {
			nodePort = 30000 + i
		}
		s.Services = append(s.Services, Service(fmt.Sprintf("s%05d", i), fmt.Sprintf("198.18.%d.%d", i/256, i%256),
			fmt.Sprintf("TCP 80 %d:%s", nodePort, Destinations(endpoints))))
	}
	return s
}

// LargeSnapshot has what makes trees of every kind, a few levels deep.
func LargeSnapshot() *model.Snapshot {
	s := ManyServices(40, 6)
	ports := make([]string, 60)
	for i := range ports {
		ports[i] = fmt.Sprintf("TCP %d 0: 10.1.0.2:%d 10.1.0.3:%d", 8000+3*i, 8000+3*i, 8000+3*i)
	}
	s.Services = append(s.Services,
		Service("many-endpoints", "198.18.1.1", "UDP 53 30053:"+Destinations(120)),
		Service("many-ports", "203.0.113.7", append(ports, "UDP 53 0: 10.1.0.2:53", "UDP 5353 0:")...))
	return s
}
