package main

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sallyport/watcher/model"
)

// A problemBook holds the current Problems of every part that finds some: translation, and the reconcilers that meet what
// only the machine or the API server knows. It tells the operator of each once, when it appears and when it is gone, and
// counts them by reason.
type problemBook struct {
	log     *slog.Logger
	gauge   *prometheus.GaugeVec
	changed func([]model.Problem) // is told the whole list after a change; nil: nobody is

	mu    sync.Mutex
	parts map[string][]model.Problem
	all   []model.Problem // of all parts, ordered, without repeats
}

func newProblemBook(log *slog.Logger, r prometheus.Registerer) *problemBook {
	return &problemBook{
		log: log,
		gauge: promauto.With(r).NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_problems", Help: "Objects and fields that cannot be honoured at present, by reason.",
		}, []string{"reason"}),
		parts: map[string][]model.Problem{},
	}
}

// set takes over what a part has found, in place of what it had found before.
func (b *problemBook) set(part string, list []model.Problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(b.parts[part], list) {
		return
	}
	b.parts[part] = list
	before := b.all
	if b.all = merged(b.parts); slices.Equal(before, b.all) {
		return // another part has found the same
	}
	for _, p := range missingIn(before, b.all) {
		b.log.Warn("problem", attributes(p)...)
	}
	for _, p := range missingIn(b.all, before) {
		b.log.Info("problem solved", attributes(p)...)
	}
	b.count(before)
	if b.changed != nil {
		b.changed(b.all)
	}
}

// current is every Problem that there is. The list must not be modified.
func (b *problemBook) current() []model.Problem {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all
}

func merged(parts map[string][]model.Problem) []model.Problem {
	var s model.Snapshot
	for _, list := range parts {
		s.Problems = append(s.Problems, list...)
	}
	s.SortProblems()
	return s.Problems
}

// missingIn are those of list that other does not have; both are ordered.
func missingIn(other, list []model.Problem) (out []model.Problem) {
	for _, p := range list {
		if _, found := slices.BinarySearchFunc(other, p, model.Problem.Compare); !found {
			out = append(out, p)
		}
	}
	return out
}

func attributes(p model.Problem) []any {
	return []any{"object", p.Object.String(), "field", p.Field, "reason", p.Reason, "message", p.Message}
}

// count sets the gauge, also to 0 for a reason that is gone.
func (b *problemBook) count(before []model.Problem) {
	counts := map[model.Reason]float64{}
	for _, p := range before {
		counts[p.Reason] = 0
	}
	for _, p := range b.all {
		counts[p.Reason]++
	}
	for reason, n := range counts {
		b.gauge.WithLabelValues(string(reason)).Set(n)
	}
}
