package translate

import (
	"fmt"
	"slices"

	"sallyport/watcher/model"
)

// Bounds of what is said about one object. Each Problem is a line in the log of every edge, and an Event, of which only a
// few are sent in a second: one object must not drown what is wrong with the others.
const (
	maxProblems = 32
	maxMessage  = 1024 // bytes
)

// boundProblems keeps the first Problems of each object, and says where there are more.
func boundProblems(s *model.Snapshot) {
	s.Problems = firstProblems(s.Problems)
	of := 0 // of how many the object has so far
	for i := range s.Problems {
		p := &s.Problems[i]
		if i == 0 || s.Problems[i-1].Object != p.Object {
			of = 0
		}
		if of++; of > maxProblems {
			p.Field, p.Message = "", fmt.Sprintf("there are more than %d problems: solve these to be told the rest", maxProblems)
		}
	}
	s.SortProblems()
}

// firstProblems orders Problems, and keeps as many of each object as it takes to see whether there are too many.
func firstProblems(all []model.Problem) []model.Problem {
	slices.SortFunc(all, model.Problem.Compare)
	all = slices.Compact(all)
	kept, of := all[:0], 0 // of how many the object of the last one has
	for _, p := range all {
		if len(kept) == 0 || kept[len(kept)-1].Object != p.Object {
			of = 0
		}
		if of++; of <= maxProblems+1 {
			kept = append(kept, p)
		}
	}
	clear(all[len(kept):])
	return kept
}
