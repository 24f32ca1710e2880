package main

import (
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sallyport/watcher/model"
)

// problemLog tells the operator of each Problem once, when it appears and when it is gone, and counts them by reason.
type problemLog struct {
	log   *slog.Logger
	gauge *prometheus.GaugeVec

	mu    sync.Mutex
	known map[model.Problem]bool
}

func newProblemLog(log *slog.Logger, r prometheus.Registerer) *problemLog {
	return &problemLog{
		log: log,
		gauge: promauto.With(r).NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_problems", Help: "Objects and fields of the current snapshot that cannot be honoured, by reason.",
		}, []string{"reason"}),
		known: map[model.Problem]bool{},
	}
}

// update takes over the problems of a new snapshot.
func (l *problemLog) update(list []model.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := make(map[model.Problem]bool, len(list))
	for _, p := range list {
		now[p] = true
		if !l.known[p] {
			l.log.Warn("problem", attributes(p)...)
		}
	}
	for p := range l.known {
		if !now[p] {
			l.log.Info("problem solved", attributes(p)...)
		}
	}
	l.known = now
	l.count()
}

// count sets the gauge, also to 0 for a reason that is gone.
func (l *problemLog) count() {
	l.gauge.Reset()
	for p := range l.known {
		l.gauge.WithLabelValues(string(p.Reason)).Inc()
	}
}

func attributes(p model.Problem) []any {
	return []any{"object", p.Object.String(), "field", p.Field, "reason", p.Reason, "message", p.Message}
}
