package nftables

import (
	"fmt"
	"hash/fnv"
	"strconv"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// A packet mark (fwmark) of Sallyport is laid out as
//
//	bits 31..24  plan.Options.Mark: the mark is Sallyport's
//	bit  23      1: the Service, by bits 22..0, whose source ranges or limits are asked
//	             0: the service port, by bits 22..9, that keeps clients with their endpoints; and which endpoint, by bits 8..0
//
// It stands, where a Service needs it, from nat prerouting (or output) to nat postrouting of a connection's first packet, which
// clears it. Connections carry the top byte as their connmark, the other 24 bits of which are left to others.
const (
	serviceMark = 1 << 23
	portShift   = 9
	portMask    = 0xffffffff &^ endpoints
	endpoints   = 1<<portShift - 1 // there is no endpoint 0
)

// marks gives out marks, no two things the same. They follow from what they stand for, so that clients' state outlives a new
// process; only of two that would fall on the same one, the later one gets the next that is free. Things keep their marks for as
// long as they are in one plan after the other, whatever else comes and goes.
//
// There are far more marks than a plan has things that need them: it bounds how many endpoints keep their clients.
type marks struct {
	given, before   map[string]uint32 // in this plan, and in the last one
	holders, former map[uint32]string // the same the other way round
}

// next begins a plan.
func (m *marks) next() {
	m.before, m.former = m.given, m.holders
	m.given, m.holders = make(map[string]uint32, len(m.before)), make(map[uint32]string, len(m.former))
}

// mark gives one of the n marks base, base+step and so on.
func (m *marks) mark(what string, base, step, n uint32) (mark uint32, isNew bool) {
	if mark, known := m.given[what]; known {
		return mark, false
	}
	mark, known := m.before[what]
	if !known {
		mark = m.free(what, base, step, n)
	}
	m.given[what], m.holders[mark] = mark, what
	return mark, true
}

// free finds one that nothing has, nor had in the last plan: what had it may come yet.
func (m *marks) free(what string, base, step, n uint32) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(what)) // a hash takes all
	i := h.Sum32()
	i ^= i >> 15 // FNV changes little but the low bits for similar ends
	for {
		i %= n
		mark := base + i*step
		_, taken := m.holders[mark]
		_, reserved := m.former[mark]
		if !taken && !reserved {
			return mark
		}
		i++
	}
}

// service is the mark of a Service. What its limits count stays as it was made: other limits are another mark.
func (m *marks) service(o plan.Options, s *model.Service) uint32 {
	var limits model.Limits
	if s.Limits != nil {
		limits = *s.Limits
	}
	mark, _ := m.mark(fmt.Sprintf("service %x %s %v", o.Owner(), name(s), limits), o.Owner()|serviceMark, 1, serviceMark)
	return mark
}

// port is the mark of a service port.
func (m *marks) port(o plan.Options, t *plan.Target) (mark uint32, isNew bool) {
	what := fmt.Sprintf("port %x %s %s %d", o.Owner(), name(t.Service), t.ServicePort.Protocol, t.ServicePort.Port)
	return m.mark(what, o.Owner(), 1<<portShift, serviceMark>>portShift)
}

// endpoint is the mark of an endpoint of a service port.
func (m *marks) endpoint(port uint32, d model.Destination) uint32 {
	mark, _ := m.mark(fmt.Sprintf("endpoint %d %s", port, d.Addr), port+1, 1, endpoints)
	return mark
}

// name tells a Service from all others, also from those of other clusters.
func name(s *model.Service) string {
	return fmt.Sprintf("%q %q %q", s.Ref.Cluster, s.Ref.Namespace, s.Ref.Name)
}

func hex(mark uint32) string { return "0x" + strconv.FormatUint(uint64(mark), 16) }
