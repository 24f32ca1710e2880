package translate

import (
	"fmt"

	"sallyport/watcher/model"
)

// Bounds of what is said about one object. Each Problem is a line in the log of every edge, and an Event, of which only a
// few are sent in a second: one object must not drown what is wrong with the others.
const (
	maxProblems = 32
	maxMessage  = 1024 // bytes
)

// boundProblems keeps the first Problems of each object and the beginnings of their messages. Problems are ordered by object.
func boundProblems(s *model.Snapshot) {
	kept, of := s.Problems[:0], 0 // of how many the object of the last one has
	for _, p := range s.Problems {
		p.Message = brief(p.Message, maxMessage)
		if len(kept) == 0 || kept[len(kept)-1].Object != p.Object {
			of = 0
		}
		switch of++; {
		case of <= maxProblems:
			kept = append(kept, p)
		case of == maxProblems+1:
			p.Field, p.Message = "", fmt.Sprintf("there are more than %d problems: solve these to be told the rest", maxProblems)
			kept = append(kept, p)
		}
	}
	clear(s.Problems[len(kept):])
	s.Problems = kept
	s.SortProblems()
}
