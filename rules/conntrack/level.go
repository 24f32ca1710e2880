package conntrack

// Percentages of net.netfilter.nf_conntrack_max: from fullAt on the table is held to be full, until it is below roomAt
// again. When it is full, the kernel drops whatever would open a flow.
const (
	fullAt = 80
	roomAt = 70
)

// A level says how full the table is.
type level struct{ full bool }

// set takes new figures, and says whether that made the table full, or gave it room again.
func (l *level) set(entries, limit uint32) (changed bool) {
	percent := uint64(entries) * 100
	full := percent >= uint64(limit)*fullAt || l.full && percent >= uint64(limit)*roomAt
	full = full && limit > 0
	changed = full != l.full
	l.full = full
	return changed
}
