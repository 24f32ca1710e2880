package model

import "testing"

func TestPort(t *testing.T) {
	for _, n := range []int{0, 1, FewPorts, FewPorts + 1, 1000} {
		s := &Service{}
		for i := range n {
			s.Ports = append(s.Ports, ServicePort{Protocol: TCP, Port: uint16(2 * i)}, ServicePort{Protocol: UDP, Port: uint16(3 * i)})
		}
		for _, how := range []string{"one after the other", "by the index"} {
			for i := range s.Ports {
				p := &s.Ports[i]
				if got := s.Port(p.Port, p.Protocol); got != p {
					t.Fatalf("%d ports, %s: %d/%s is %p, want %p", n, how, p.Port, p.Protocol, got, p)
				}
			}
			if got := s.Port(65535, TCP); got != nil {
				t.Errorf("%d ports, %s: 65535/TCP is %+v", n, how, got)
			}
			s.IndexPorts()
		}
	}
}
