package translate

import (
	"cmp"
	"fmt"
	"slices"

	"sallyport/watcher/model"
)

// A listener is a port of the edge's own addresses, or of a Service.
type listener struct {
	protocol model.Protocol
	port     uint16
}

// A nodePortClaim is a service port that wants a NodePort on the edge.
type nodePortClaim struct {
	listener
	port uint16 // ServicePort.port
	i    int    // in spec.ports
}

func nodePortField(i int) string { return indexed("spec.ports", i, ".nodePort") }

// A rivalClaim is the nodePortClaim of a Service, to be compared with others'.
type rivalClaim struct {
	nodePortClaim
	*backendService
}

// resolveNodePorts takes the NodePort from each service port that cannot have it: the edge listens on it itself, or an
// older Service has it (which only happens with several clusters or hand-written manifests). VIPs, and destinations by
// way of that port on the nodes, stay.
func resolveNodePorts(s *model.Snapshot, clusters []*translator, own []ListenPort) {
	taken := make(map[listener]string, len(own))
	for _, l := range own {
		taken[listener{l.Protocol, l.Port}] = fmt.Sprintf("the edge itself listens on %d/%s for %s: change either", l.Port, l.Protocol, l.What)
	}
	ours := map[model.ObjectRef]bool{} // Services whose ports are ours to change, and not remembered
	for _, c := range contested(clusters, taken) {
		why, conflict := taken[c.listener]
		if !conflict {
			taken[c.listener] = c.Ref.String() + " has this nodePort already: choose another"
			continue
		}
		s.Problems = append(s.Problems, model.Problem{Object: c.Ref, Field: nodePortField(c.i), Reason: model.ReasonPortConflict, Message: why})
		svc := s.Service(c.Ref)
		if !ours[c.Ref] {
			ours[c.Ref], svc.Ports = true, slices.Clone(svc.Ports)
		}
		svc.Port(c.port, c.protocol).NodePort = 0
	}
}

// contested are the claims to node ports that are taken, or that there are several for, the oldest first. They are few: that
// there is nothing to decide is found out of a bit for each port.
func contested(clusters []*translator, taken map[listener]string) []rivalClaim {
	var once, twice portSet
	for l := range taken {
		once.add(l)
	}
	eachClaim(clusters, func(_ *backendService, c *nodePortClaim) {
		if once.has(c.listener) {
			twice.add(c.listener)
		}
		once.add(c.listener)
	})
	var all []rivalClaim
	eachClaim(clusters, func(s *backendService, c *nodePortClaim) {
		if twice.has(c.listener) {
			all = append(all, rivalClaim{*c, s})
		}
	})
	slices.SortStableFunc(all, func(a, b rivalClaim) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Ref.Compare(b.Ref))
	})
	return all
}

func eachClaim(clusters []*translator, do func(*backendService, *nodePortClaim)) {
	for _, t := range clusters {
		for _, s := range t.memory.order {
			for i := range s.result.claims {
				do(s.result, &s.result.claims[i])
			}
		}
	}
}

// A portSet is a set of ports of each protocol.
type portSet [3][1 << 16 / 64]uint64

func (s *portSet) word(l listener) *uint64 {
	return &s[slices.Index([]model.Protocol{model.TCP, model.UDP, model.SCTP}, l.protocol)][l.port/64]
}

func (s *portSet) add(l listener)      { *s.word(l) |= 1 << (l.port % 64) }
func (s *portSet) has(l listener) bool { return *s.word(l)&(1<<(l.port%64)) != 0 }
