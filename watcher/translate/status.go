package translate

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
)

// statusOf is the status of a Service that is ours, or bears our mark from when it was. A status without our
// mark, on a Service that names no class, may be another controller's: it counts as not served until lb, which has the
// pools, knows better.
func (s *service) statusOf() *model.Status {
	ours := isOurs(s.Service) && notServed(s.Service) == ""
	st := model.Status{Ref: s.result.Ref, Marked: isMarked(s.Status.Conditions)}
	if !ours && !st.Marked {
		return nil
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		st.Addresses = appendAddress(st.Addresses, i.IP, i.Hostname, string(value(i.IPMode, "")))
	}
	st.Served = ours && (st.Marked || len(st.Addresses) == 0 || s.Spec.LoadBalancerClass != nil)
	return &st
}

func isMarked(conditions []metav1.Condition) bool {
	return slices.ContainsFunc(conditions, func(c metav1.Condition) bool { return c.Type == model.StatusCondition })
}

// status records the status of an Ingress that is ours, or has one that may have been.
func (g *ingress) status(ours bool) {
	st := model.Status{Ref: g.self, Served: ours}
	for _, i := range g.Status.LoadBalancer.Ingress {
		st.Addresses = appendAddress(st.Addresses, i.IP, i.Hostname, "")
	}
	if ours || len(st.Addresses) > 0 {
		g.out.Statuses = append(g.out.Statuses, st)
	}
}

// appendAddress adds an entry of status.loadBalancer.ingress, unless it says nothing that can be read.
func appendAddress(list []model.StatusAddress, ip, hostname, mode string) []model.StatusAddress {
	addr, ok := parseAddr(ip)
	if !ok && hostname == "" {
		return list
	}
	return append(list, model.StatusAddress{IP: addr, Hostname: hostname, IPMode: mode})
}

// resolveStatuses orders the statuses. Of the Ingresses that are ours those that no route is by are not served.
func resolveStatuses(s *model.Snapshot) {
	routed := make(map[model.ObjectRef]bool, len(s.Routes))
	for i := range s.Routes {
		routed[s.Routes[i].Ref] = true
	}
	for i := range s.Statuses {
		if st := &s.Statuses[i]; st.Ref.Kind == "Ingress" {
			st.Served = st.Served && routed[st.Ref]
		}
	}
	s.Statuses = slices.DeleteFunc(s.Statuses, func(st model.Status) bool {
		return st.Ref.Kind == "Ingress" && !st.Served && len(st.Addresses) == 0
	})
	slices.SortFunc(s.Statuses, func(a, b model.Status) int { return a.Ref.Compare(b.Ref) })
}
