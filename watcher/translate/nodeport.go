package translate

import (
	"cmp"
	"fmt"
	"slices"
	"time"

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
	service model.ObjectRef
	created time.Time
	port    uint16 // ServicePort.port
	field   string
}

// resolveNodePorts takes the NodePort from each service port that cannot have it: the edge listens on it itself, or an
// older Service has it (which only happens with several clusters or hand-written manifests). VIPs, and destinations by
// way of that port on the nodes, stay.
func resolveNodePorts(s *model.Snapshot, claims []nodePortClaim, own []ListenPort) {
	taken := make(map[listener]string, len(own)+len(claims))
	for _, l := range own {
		taken[listener{l.Protocol, l.Port}] = fmt.Sprintf("the edge itself listens on %d/%s for %s: change either", l.Port, l.Protocol, l.What)
	}
	slices.SortStableFunc(claims, func(a, b nodePortClaim) int {
		return cmp.Or(a.created.Compare(b.created), a.service.Compare(b.service))
	})
	for _, c := range claims {
		why, conflict := taken[c.listener]
		if !conflict {
			taken[c.listener] = c.service.String() + " has this nodePort already: choose another"
			continue
		}
		s.Problems = append(s.Problems, model.Problem{Object: c.service, Field: c.field, Reason: model.ReasonPortConflict, Message: why})
		s.Service(c.service).Port(c.port, c.protocol).NodePort = 0
	}
}
