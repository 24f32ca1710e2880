package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/watcher/model"
)

// Assign sets the VIPs of the LoadBalancer Services in a snapshot that is not published yet: each gets the addresses that
// it asks for, if a pool contains them and no older Service has them. What a Service cannot be given is a Problem, and
// costs it none of its other addresses. So is a port that an older Service has at the same address. A Service that another
// controller serves gets no VIPs: it would be in two places.
func Assign(s *model.Snapshot, pools []Pool) {
	a := assigner{out: s, statuses: s.Statuses, pools: pools, names: poolNames(pools), holder: make(map[netip.Addr]*model.Service, len(s.Services))}
	ours := make([]*model.Service, 0, len(s.Services))
	for i := range s.Services {
		svc := &s.Services[i]
		svc.VIPs = nil
		if svc.LoadBalancer && a.isOurs(svc) {
			a.claim(svc)
			ours = append(ours, svc)
		}
	}
	for _, svc := range ours {
		a.assign(svc)
	}
	a.explainConflicts()
	s.Problems = model.FirstProblems(s.Problems)
}

// byAge orders services, the oldest first: who came first keeps its address, whatever is made later.
func byAge(a, b *model.Service) int {
	return cmp.Or(a.Created.Compare(b.Created), a.Ref.Compare(b.Ref))
}

type assigner struct {
	out      *model.Snapshot
	statuses []model.Status // those from that of the next Service on: both are ordered by Ref
	pools    []Pool
	names    string                        // of the pools, for messages
	holder   map[netip.Addr]*model.Service // of each address of a pool that is asked for: the oldest that does
}

// isOurs says whether no other controller serves the Service, and settles Status.Served, which translation leaves false
// where only the pools tell. An address or name in its status that is not of a pool is not from here.
func (a *assigner) isOurs(s *model.Service) bool {
	st := a.status(s.Ref)
	if st == nil || st.Served {
		return true
	}
	foreign := func(x model.StatusAddress) bool { return x.Hostname != "" || !a.inPool(x.IP) }
	i := slices.IndexFunc(st.Addresses, foreign)
	st.Served = i < 0
	if !st.Served {
		a.problem(s, "status.loadBalancer", model.ReasonServedByOther,
			"%s is not of a pool here, so another controller serves the Service: to have it served here make it anew with spec.loadBalancerClass: "+
				"sallyport.io/edge, or, if that controller is gone, clear its status", cmp.Or(st.Addresses[i].Hostname, st.Addresses[i].IP.String()))
	}
	return st.Served
}

// status returns the status of the object named by ref, or nil. Calls come in the order of refs: to search for each of 10,000
// Services was a quarter of a snapshot's making.
func (a *assigner) status(ref model.ObjectRef) *model.Status {
	for len(a.statuses) > 0 {
		switch c := a.statuses[0].Ref.Compare(ref); {
		case c == 0:
			return &a.statuses[0]
		case c > 0:
			return nil
		}
		a.statuses = a.statuses[1:]
	}
	return nil
}

// claim makes the Service holder of the addresses that no older one asks for.
func (a *assigner) claim(s *model.Service) {
	for _, addr := range s.RequestedVIPs {
		if !a.inPool(addr) {
			continue
		}
		if h := a.holder[addr]; h == nil || byAge(s, h) < 0 {
			a.holder[addr] = s
		}
	}
}

func (a *assigner) assign(s *model.Service) {
	if len(s.RequestedVIPs) == 0 {
		if s.RequestField == "" { // else translation has said what is wrong with the request
			a.problem(s, "spec.loadBalancerIP", model.ReasonNoAddressRequested,
				"no address is asked for: set annotation sallyport.io/load-balancer-ips to an address of %s", a.names)
		}
		return
	}
	s.VIPs = make([]netip.Addr, 0, len(s.RequestedVIPs))
	for _, addr := range s.RequestedVIPs {
		switch holder := a.holder[addr]; {
		case holder == nil:
			a.problem(s, s.RequestField, model.ReasonAddressNotInPool, "%v is in no pool: choose an address of %s", addr, a.names)
		case holder != s:
			a.problem(s, s.RequestField, model.ReasonAddressInUse, "%v is held by %v, which came first: choose another", addr, holder.Ref)
		case !slices.Contains(s.VIPs, addr):
			s.VIPs = append(s.VIPs, addr)
		}
	}
}

func (a *assigner) inPool(addr netip.Addr) bool {
	return slices.ContainsFunc(a.pools, func(p Pool) bool { return p.Contains(addr) })
}

// poolNames names the pools, for messages.
func poolNames(pools []Pool) string {
	switch len(pools) {
	case 0:
		return "a pool, of which none is configured (loadBalancer.ipAddressPools)"
	case 1:
		return "pool " + pools[0].String()
	}
	names := make([]string, 0, len(pools))
	for _, p := range pools {
		names = append(names, p.String())
	}
	return "the pools " + strings.Join(names, ", ")
}

func (a *assigner) problem(s *model.Service, field string, r model.Reason, format string, args ...any) {
	a.out.Problems = append(a.out.Problems, model.Problem{Object: s.Ref, Field: field, Reason: r, Message: fmt.Sprintf(format, args...)})
}
