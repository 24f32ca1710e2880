package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

// TestFamilies has Services of one family and of both, and one that gets a second family and loses it.
func TestFamilies(t *testing.T) {
	s := theSite(t)
	gates := s.gates(t, "")
	ns := s.webPods(t, 2)
	vips := s.vips(83)
	for _, tt := range []struct {
		name, fields string
		v4, v6       bool
	}{
		{"IPv4", "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4]", true, false},
		{"both", "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]", true, true},
		{"IPv4 again", "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4]", true, false},
		{"both, if there are two", "ipFamilyPolicy: PreferDualStack", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.Apply(t, ns, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: lb, annotations: {sallyport.io/load-balancer-ips: '%v,%v'}}, spec: {type: LoadBalancer, %s, selector: {app: web}, ports: [{port: 8000, targetPort: serve, nodePort: 30175}]}}", vips[0], vips[1], tt.fields))
			s.wantFamilies(t, gates, vips, 30175, [2]bool{tt.v4, tt.v6})
		})
	}
	t.Run("IPv6", func(t *testing.T) {
		six := s.vips(84)
		s.Apply(t, ns, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: six, annotations: {sallyport.io/load-balancer-ips: '%v'}}, spec: {type: LoadBalancer, ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], selector: {app: web}, ports: [{port: 8000, targetPort: serve, nodePort: 30176}]}}", six[1]))
		s.wantFamilies(t, gates, six, 30176, [2]bool{false, true})
	})
}

// wantFamilies waits until a Service is answered in the families that it is of, by VIP and by node port, and in no other. Only who
// forwards packets has to refuse the other one.
func (s *site) wantFamilies(t *testing.T, gates []*gate, vips []netip.Addr, nodePort uint16, served [2]bool) {
	t.Helper()
	s.onEach(t, gates, func(t *testing.T, g *gate) {
		eventually(t, func() error {
			var errs []error
			for i := range vips {
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(vips[i], 8000), netip.AddrPortFrom(g.addrs()[i], nodePort)} {
					switch {
					case served[i]:
						errs = append(errs, s.caller().wantPods(to, 2))
					case g.kernel:
						errs = append(errs, s.caller().wantRefused(to))
					}
				}
			}
			return errors.Join(errs...)
		})
	})
}
