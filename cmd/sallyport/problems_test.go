package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"sallyport/watcher/model"
)

func TestProblemsOfAllPartsAreToldOnceAndCounted(t *testing.T) {
	var log bytes.Buffer
	var told [][]model.Problem
	b := newProblemBook(slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry())
	b.changed = func(list []model.Problem) { told = append(told, list) }
	web := model.Problem{Object: model.ObjectRef{Kind: "Service", Namespace: "shop", Name: "web"}, Reason: model.ReasonAddressTaken, Message: "it is the gateway"}
	ing := model.Problem{Object: model.ObjectRef{Kind: "Ingress", Namespace: "shop", Name: "web"}, Reason: model.ReasonUnsupported, Message: "no"}
	b.set("translate", []model.Problem{ing})
	b.set("rules", []model.Problem{web})
	b.set("rules", []model.Problem{web})
	b.set("translate", []model.Problem{ing, web}) // two parts may find the same
	if got := b.current(); len(got) != 2 || got[0] != ing || got[1] != web {
		t.Errorf("current %v", got)
	}
	if n := strings.Count(log.String(), "msg=problem "); n != 2 {
		t.Errorf("%d problems told, want each once:\n%s", n, log.String())
	}
	b.set("rules", nil)
	if strings.Contains(log.String(), "solved") {
		t.Errorf("a problem that another part still has is called solved:\n%s", log.String())
	}
	b.set("translate", []model.Problem{ing})
	if n := testutil.CollectAndCount(b.gauge); n != 2 {
		t.Errorf("%d reasons are shown, want also the one that is gone, as 0", n)
	}
	if n := strings.Count(log.String(), "problem solved"); n != 1 || testutil.ToFloat64(b.gauge.WithLabelValues("Unsupported")) != 1 ||
		testutil.ToFloat64(b.gauge.WithLabelValues("AddressTaken")) != 0 {
		t.Errorf("%d solved, want 1:\n%s", n, log.String())
	}
	if len(told) != 3 {
		t.Errorf("told %d times, want at each of the 3 changes", len(told))
	}
}
