package stream

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

var nodePortAddresses = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}

// Random Services want the same addresses, some of them in vain: user space and the kernel dataplanes agree on who has which,
// and where source ranges hold.
func TestClaimsAreThoseOfTheKernelDataplanes(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s := &model.Snapshot{}
		for i := range 12 {
			s.Services = append(s.Services, randomService(rnd, fmt.Sprintf("s%02d", i)))
		}
		onNodePorts := rnd.IntN(2) == 0
		p := New(Options{NodePortAddresses: nodePortAddresses, SourceRangesOnNodePorts: onNodePorts})
		wants, _ := p.wants(s)
		p.Close()
		var got []string
		for _, w := range wants {
			got = append(got, fmt.Sprintf("%v %v restricted %t", w.address, w.service, w.ranges != nil))
		}
		slices.Sort(got)
		if want := planned(s, onNodePorts); !slices.Equal(got, want) {
			t.Fatalf("seed %d:\ngot  %q\nwant %q", seed, got, want)
		}
	}
}

func randomService(rnd *rand.Rand, name string) model.Service {
	maybe := func(addrs ...string) (out []netip.Addr) {
		for _, a := range addrs {
			if rnd.IntN(3) == 0 {
				out = append(out, netip.MustParseAddr(a))
			}
		}
		return out
	}
	svc := model.Service{
		Ref:         model.ObjectRef{Kind: "Service", Namespace: "default", Name: name},
		Created:     time.Unix(rnd.Int64N(4), 0),
		VIPs:        maybe("192.0.2.1", "192.0.2.2", "2001:db8:1::1"),
		ExternalIPs: maybe("192.0.2.2", "192.0.2.3", "2001:db8:1::1"),
		ClusterIPs:  maybe("10.96.0.1", "fd00::1"),
	}
	if rnd.IntN(2) == 0 {
		svc.SourceRanges = rangesOf("10.0.0.0/8")
	}
	for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		port := model.ServicePort{Protocol: protocol, Port: uint16(80 + rnd.IntN(2)), NodePort: uint16(rnd.IntN(3))}
		if port.NodePort != 0 {
			port.NodePort += 30000
		}
		if rnd.IntN(4) != 0 {
			port.Destinations = endpointsOf("10.1.0.1", "fd01::1")
		}
		svc.Ports = append(svc.Ports, port)
	}
	return svc
}

// planned lists what the kernel would serve, but for SCTP and what has no destinations.
func planned(s *model.Snapshot, onNodePorts bool) (out []string) {
	for _, f := range plan.Families {
		options := plan.Options{SourceRangesOnNodePorts: onNodePorts}
		for _, a := range nodePortAddresses {
			options.NodePortAddresses = append(options.NodePortAddresses, netip.PrefixFrom(a, a.BitLen()))
		}
		p := plan.New(s, f, options)
		list := func(at netip.Addr, entries []plan.Entry) {
			for _, e := range entries {
				if e.Protocol != model.SCTP && len(e.Destinations) > 0 {
					out = append(out, fmt.Sprintf("%v %v restricted %t", address{e.Protocol, at, e.Port}, e.Service.Ref, e.Restricted))
				}
			}
		}
		for _, a := range p.Addresses {
			list(a.Addr, a.Entries)
		}
		for _, a := range nodePortAddresses {
			if f.Has(a) {
				list(a, p.NodePorts)
			}
		}
	}
	slices.Sort(out)
	return out
}
