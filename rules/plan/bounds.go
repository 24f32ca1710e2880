package plan

import (
	"fmt"

	"sallyport/watcher/model"
)

const (
	// maxKept is to how many destinations of a service port clients are kept by state: one after the other is asked whether it
	// has the client.
	maxKept = 64
	// maxKeptAll is to how many those of all service ports come. With iptables each has a set, of which there are 65,534 at
	// most, and a chain, which iptables-nft loads in quadratic time: 5,000 take 2 s.
	maxKeptAll = 4096
)

// bounds hold Services to what the kernel can do, the oldest first.
type bounds struct {
	p    *Plan
	kept int // destinations that clients are kept to by state
}

// hold notes what a target asks for and cannot have, in words that stay the same while endpoints come and go.
func (b *bounds) hold(t *Target) {
	n := len(t.Destinations)
	if n > MaxSlots {
		b.problem(t, "spec.ports", "of its endpoints, %d get connections, which is the most", MaxSlots)
	}
	const byHash = "clients keep to endpoints by a hash, without timeout"
	switch a := t.Service.Affinity; {
	case a == nil || !a.Exact || n == 0:
	case n > maxKept:
		b.problem(t, "spec.sessionAffinity", "%s: it has more than %d endpoints", byHash, maxKept)
	case b.kept+n > maxKeptAll:
		b.problem(t, "spec.sessionAffinity", "%s: with older Services, it has more than the %d endpoints that clients are kept to by state", byHash, maxKeptAll)
	default:
		b.kept += n
		t.sticky = a.Timeout
	}
}

func (b *bounds) problem(t *Target, field, format string, args ...any) {
	port := fmt.Sprintf("port %d of %s, %v: ", t.ServicePort.Port, t.ServicePort.Protocol, b.p.Family)
	b.p.Problems = append(b.p.Problems, model.Problem{Object: t.Service.Ref, Field: field, Reason: model.ReasonUnsupported,
		Message: port + fmt.Sprintf(format, args...)})
}
