package status

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"sallyport/watcher/model"
)

// A change is one write that is due.
type change struct {
	seen model.Status // what the API server shows
	uid  string       // of the object that it shows it for, or ""
	want []netip.Addr // what it shall show; empty to take back what we have written
}

// kindIngress is the kind of Ingresses; everything else that has a status is a Service.
const kindIngress = "Ingress"

func (c change) resource() resource {
	if c.seen.Ref.Kind == kindIngress {
		return resourceIngress
	}
	return resourceService
}

// equal says whether c was due for the same reason as o.
func (c change) equal(o change) bool {
	return c.seen.Ref == o.seen.Ref && c.uid == o.uid && c.seen.Served == o.seen.Served && c.seen.Marked == o.seen.Marked &&
		slices.Equal(c.seen.Addresses, o.seen.Addresses) && slices.Equal(c.want, o.want)
}

// changes lists the writes that make the status of the cluster's objects what s wants, in the order of Statuses.
func changes(s *model.Snapshot, cluster string, ingress []netip.Addr) []change {
	var due []change
	for _, seen := range s.Statuses {
		if seen.Ref.Cluster != cluster {
			continue
		}
		want, differs := wanted(s, seen, ingress)
		if differs {
			due = append(due, change{seen: seen, want: want})
		}
	}
	return due
}

// wanted returns the addresses that an object shall show, and whether there is something to write.
func wanted(s *model.Snapshot, seen model.Status, ingress []netip.Addr) (want []netip.Addr, differs bool) {
	if seen.Ref.Kind == kindIngress {
		return wantedOfIngress(seen, ingress)
	}
	if service := s.Service(seen.Ref); seen.Served && service != nil && len(service.VIPs) > 0 {
		return service.VIPs, !seen.Marked || !shows(seen, service.VIPs, string(corev1.LoadBalancerIPModeProxy))
	}
	return nil, seen.Marked
}

// wantedOfIngress takes addresses that equal ours for ours: an Ingress has no condition that says so. The API server knows
// who wrote them, see apply.go.
func wantedOfIngress(seen model.Status, ingress []netip.Addr) (want []netip.Addr, differs bool) {
	ours := len(ingress) > 0 && shows(seen, ingress, "")
	switch {
	case !seen.Served:
		return nil, ours
	case len(ingress) == 0:
		return nil, false
	}
	return ingress, !ours
}

// shows says whether a status has the addresses, all of that ipMode, and nothing else.
func shows(seen model.Status, addresses []netip.Addr, ipMode string) bool {
	return slices.EqualFunc(seen.Addresses, addresses, func(a model.StatusAddress, ip netip.Addr) bool {
		return a == model.StatusAddress{IP: ip, IPMode: ipMode}
	})
}
