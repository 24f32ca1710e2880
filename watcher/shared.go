package watcher

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// sharedValues keeps one copy of what many objects have alike, such as the names of nodes and protocols: decoding makes a new one
// for each. Who holds an object must not write to it anyway.
type sharedValues struct {
	strings   *shared[string]
	bools     *shared[bool]
	ports     *shared[int32]
	protocols *shared[corev1.Protocol]
	policies  *shared[corev1.IPFamilyPolicy]
}

func newSharedValues() *sharedValues {
	return &sharedValues{newShared[string](), newShared[bool](), newShared[int32](), newShared[corev1.Protocol](), newShared[corev1.IPFamilyPolicy]()}
}

// mostShared is how many values are known at most: those of nodes, zones, namespaces and ports are fewer in all but the largest
// clusters, and without a bound what is gone would be held forever.
const mostShared = 20_000

// A shared finds the one copy of a value. It may be used concurrently.
type shared[T comparable] struct {
	mu    sync.Mutex
	known map[T]*T
}

func newShared[T comparable]() *shared[T] { return &shared[T]{known: map[T]*T{}} }

// pointer returns a pointer to a value equal to that of p, which may be p; nil remains nil.
func (s *shared[T]) pointer(p *T) *T {
	if p == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.known[*p]; known != nil {
		return known
	}
	if len(s.known) >= mostShared {
		clear(s.known)
	}
	s.known[*p] = p
	return p
}

// value is pointer for a value.
func (s *shared[T]) value(v T) T {
	s.mu.Lock()
	known := s.known[v]
	s.mu.Unlock()
	if known == nil {
		own := v // on the heap only if it is new
		known = s.pointer(&own)
	}
	return *known
}
