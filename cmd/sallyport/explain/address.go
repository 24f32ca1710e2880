package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/watcher/model"
)

// A holder is a Service with one of its addresses.
type holder struct {
	*model.Service
	as string // VIP, external IP or cluster IP
}

// holders are the Services that have the address, the oldest first: of ports that several have there, it has them.
func (e *explainer) holders(addr netip.Addr) []holder {
	var all []holder
	for i := range e.s.Services {
		s := &e.s.Services[i]
		if as := addressKind(s, addr); as != "" && !e.isTaken(s, addr) {
			all = append(all, holder{s, as})
		}
	}
	slices.SortFunc(all, func(a, b holder) int { return cmp.Or(a.Created.Compare(b.Created), a.Ref.Compare(b.Ref)) })
	return all
}

// The kinds of addresses that Services have.
const (
	vip        = "VIP"
	externalIP = "external IP"
	clusterIP  = "cluster IP"
)

// addressKind is what the address is to the Service, or empty.
func addressKind(s *model.Service, addr netip.Addr) string {
	switch {
	case slices.Contains(s.VIPs, addr):
		return vip
	case slices.Contains(s.ExternalIPs, addr):
		return externalIP
	case slices.Contains(s.ClusterIPs, addr):
		return clusterIP
	}
	return ""
}

// isTaken says whether this edge refuses the Service an address that it was given, as it is someone else's, or of a family that
// the edge does not have: only the Problem tells.
func (e *explainer) isTaken(s *model.Service, addr netip.Addr) bool {
	return slices.ContainsFunc(e.o.Problems, func(p model.Problem) bool {
		return p.Object == s.Ref && strings.HasPrefix(p.Message, addr.String()+" is not served: ")
	})
}

// atService explains a connection to an address of Services, of which only their ports are served.
func (e *explainer) atService(c connection, all []holder) {
	for _, h := range all {
		e.concerns(h.Ref)
		e.step("address", fmt.Sprintf("%v is %s of %v", c.to.Addr(), article(h.as), h.Ref))
	}
	for _, h := range all {
		if p := h.Port(c.to.Port(), c.protocol); p != nil {
			e.forward(h.Service, p, entry{c, fmt.Sprintf("%s %v", h.as, c.to), h.as == vip, []string{"SALLY-VIP"}})
			return
		}
	}
	e.otherPort(c, all)
}

// otherPort explains a connection to a port that no Service has at its address.
func (e *explainer) otherPort(c connection, all []holder) {
	for _, h := range all {
		e.hint(fmt.Sprintf("%v has %s", h.Ref, list(portNames(h.Service), "no port that is served")))
	}
	as := all[0].as
	switch {
	case e.o.Dataplane == userspace && as != clusterIP: // where a VIP is an address like others, and not guarded
		e.atEdge(c)
		return
	case e.o.Dataplane != nftables && e.o.Dataplane != userspace:
		e.step("chain", guardOf(as))
	}
	e.conclude(Refused, fmt.Sprintf("%v has no port %d/%s, and nothing else is served at %s", all[0].Ref, c.to.Port(), c.protocol, article(as)))
}

func article(as string) string {
	if as == externalIP {
		return "an " + as
	}
	return "a " + as
}

// guardOf names the chains that refuse other ports.
func guardOf(as string) string {
	if as == clusterIP {
		return "nat SALLY-SERVICES, SALLY-VIP, SALLY-REFUSE"
	}
	return "filter SALLY-INPUT, SALLY-GUARD"
}

func portNames(s *model.Service) []string {
	var out []string
	for i := range s.Ports {
		out = append(out, portName(&s.Ports[i]))
	}
	return out
}
