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
//	             0: the service port, by bits 22..11, that keeps clients with their endpoints; and which endpoint, by bits 10..0
//
// It stands, where a Service needs it, from nat prerouting (or output) to nat postrouting of a connection's first packet, which
// clears it. Connections carry the top byte as their connmark, the other 24 bits of which are left to others.
const (
	serviceMark = 1 << 23
	portShift   = 11
	portMask    = 0xfffff800
	endpoints   = 1<<portShift - 1 // there is no endpoint 0
)

// marks gives out marks. They follow from what they stand for, so that clients' state outlives changes of everything else, and
// a new process; only of two that fall on the same one, the later one in the plan gets the next.
type marks struct {
	holders map[uint32]string
}

// mark gives one of the n marks base, base+step and so on. It has none left to give if ok is false.
func (m marks) mark(what string, base, step, n uint32) (mark uint32, isNew, ok bool) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(what)) // a hash takes all
	first := h.Sum32()
	first ^= first >> 15 // FNV changes little but the low bits for similar ends
	for i := range n {
		mark = base + (first+i)%n*step
		if holder, taken := m.holders[mark]; !taken || holder == what {
			m.holders[mark] = what
			return mark, !taken, true
		}
	}
	return 0, false, false
}

// service is the mark of a Service. What its limits count stays as it was made: other limits are another mark.
func (m marks) service(o plan.Options, s *model.Service) uint32 {
	var limits model.Limits
	if s.Limits != nil {
		limits = *s.Limits
	}
	mark, _, _ := m.mark(fmt.Sprintf("service %q %q %v", s.Ref.Namespace, s.Ref.Name, limits), o.Owner()|serviceMark, 1, serviceMark)
	return mark
}

// port is the mark of a service port; ok is false where there are too many.
func (m marks) port(o plan.Options, t *plan.Target) (mark uint32, isNew, ok bool) {
	ref, port := t.Service.Ref, t.ServicePort
	what := fmt.Sprintf("port %q %q %s %d", ref.Namespace, ref.Name, port.Protocol, port.Port)
	return m.mark(what, o.Owner(), 1<<portShift, serviceMark>>portShift)
}

// endpoint is the mark of an endpoint of a service port.
func (m marks) endpoint(port uint32, d model.Destination) uint32 {
	mark, _, _ := m.mark(fmt.Sprintf("endpoint %d %s", port, d.Addr), port+1, 1, endpoints)
	return mark
}

func hex(mark uint32) string { return "0x" + strconv.FormatUint(uint64(mark), 16) }
