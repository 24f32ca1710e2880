package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/bench/lab/sctp"
)

// sctpPods are pods that answer by SCTP as well, at port 9999.
func sctpPods(replicas int) string {
	return strings.Replace(pods("sctp", replicas, 8080), "      containers:\n", "      containers:\n      - {name: sctp, image: sctp}\n", 1)
}

// initName sends an INIT from a port nobody uses and returns the name of the pod that answers. The answer must come from where
// the INIT was sent to.
func (c caller) initName(to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	var conn *net.IPConn
	err := c.host.Do(func() (err error) { conn, err = sctp.Dial(to.Addr()); return err })
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return sctp.Init(ctx, conn, uint16(1024+rand.N(60_000)), to.Port())
}

// TestSCTP has associations begun by hand, beside TCP and UDP at the same port number: at node ports, VIPs and ClusterIPs, with
// and without endpoints.
func TestSCTP(t *testing.T) {
	s := theSite(t)
	gates := ofKernel(s.gates(t, ""))
	ns := s.Namespace(t)
	vips := s.vips(77)
	const ports = "ports: [{name: s, protocol: SCTP, port: 8000, targetPort: 9999, nodePort: 30150}, {name: t, port: 8000, targetPort: 8080, nodePort: 30150}, {name: u, protocol: UDP, port: 8000, targetPort: 8080, nodePort: 30150}]"
	s.Apply(t, ns, sctpPods(3)+s.loadBalancer("sctp", vips, "", ports))
	s.WaitReady(t, ns, "sctp", 3)
	var clusterIPs []netip.Addr
	for ip := range strings.FieldsSeq(s.Kubectl(t, "get", "service/sctp", "-n", ns, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		clusterIPs = append(clusterIPs, netip.MustParseAddr(ip))
	}
	want := func(check func(netip.AddrPort) error) {
		t.Helper()
		s.onEach(t, gates, func(t *testing.T, g *gate) {
			eventuallyAt(t, append(slices.Clone(vips), clusterIPs...), 8000, check)
			eventuallyAt(t, g.addrs(), 30150, check)
		})
	}
	want(func(to netip.AddrPort) error {
		associations := wantAnswerers(to, 3, func() (string, error) { return s.caller().initName(to) })
		return errors.Join(associations, s.caller().wantPods(to, 3), s.caller().wantUDPPods(to, 3))
	})
	s.Scale(t, ns, "sctp", 0)
	want(func(to netip.AddrPort) error {
		if name, err := s.caller().initName(to); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, sctp.ErrAborted) {
			return fmt.Errorf("%v without endpoints: %q, %v, want refused", to, name, err)
		}
		return nil
	})
}
