package stream

import (
	"net/netip"
	"sort"

	"sallyport/watcher/model"
)

// inRanges says whether a client may connect. The prefixes are ordered and disjoint, so that of those that begin at or before
// the address only the last can hold it; a family without prefixes has no such one.
func inRanges(r *model.SourceRanges, client netip.Addr) bool {
	if r == nil {
		return true
	}
	after := sort.Search(len(r.Prefixes), func(i int) bool { return r.Prefixes[i].Addr().Compare(client) > 0 })
	return after > 0 && r.Prefixes[after-1].Contains(client)
}
