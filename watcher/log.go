package watcher

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
)

// repeatAfter is how long a limitedLog keeps silent about a failure that it has reported.
const repeatAfter = time.Minute

// A limitedLog reports the failures of one watch, or of an API server, which go on every few seconds: the same kind of
// failure is logged once a minute.
type limitedLog struct {
	log *slog.Logger

	mu     sync.Mutex
	last   time.Time
	reason string
}

func (l *limitedLog) report(err error) {
	reason := string(apierrors.ReasonForError(err))
	if errors.Is(err, errOtherCluster) {
		reason = errOtherCluster.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if reason == l.reason && time.Since(l.last) < repeatAfter {
		return
	}
	l.last, l.reason = time.Now(), reason
	switch {
	case apierrors.IsForbidden(err):
		l.log.Error("kind denied by the API server: grant list and watch", "err", err)
	case apierrors.IsNotFound(err):
		l.log.Error("kind unknown to the API server", "err", err)
	case apierrors.IsUnauthorized(err):
		l.log.Error("credentials rejected by the API server: put valid ones into the kubeconfig, it is read again", "err", err)
	case errors.Is(err, errOtherCluster):
		l.log.Error("API server of another cluster, nothing is taken from it: correct the kubeconfig", "err", err)
	default:
		l.log.Warn("API server fails, trying again", "err", err)
	}
}

// LogClientGo sends client-go's own log, which is process-wide, to log. What client-go calls information is for its
// developers and becomes Debug.
func LogClientGo(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(demoted{log.Handler()}))
}

// demoted is a slog.Handler that makes Info Debug.
type demoted struct{ slog.Handler }

func demote(l slog.Level) slog.Level {
	if l < slog.LevelWarn {
		return min(l, slog.LevelDebug)
	}
	return l
}

// Enabled says whether a record of level l would be handled, at the level that it gets.
func (d demoted) Enabled(ctx context.Context, l slog.Level) bool {
	return d.Handler.Enabled(ctx, demote(l))
}

// Handle passes the record on at the level that it gets.
func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = demote(r.Level)
	return d.Handler.Handle(ctx, r)
}

// WithAttrs keeps the levels demoted.
func (d demoted) WithAttrs(as []slog.Attr) slog.Handler { return demoted{d.Handler.WithAttrs(as)} }

// WithGroup keeps the levels demoted.
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
