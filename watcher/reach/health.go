package reach

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sallyport/watcher/model"
)

// Bounds of the questions to nodes, so that many Services and nodes make neither a burst nor a flood.
const (
	questionsAtOnce = 16
	questionPause   = 10 * time.Millisecond // between two
)

// A question is whether a node has endpoints of the Service with that healthCheckNodePort (KEP-3836: kube-proxy answers 200 or
// 503 there).
type question struct {
	node model.ObjectRef
	port uint16
}

// An answer is what is known of a question.
type answer struct {
	addr      netip.Addr // InternalIP of the node
	namespace string     // of the Service
	asked     bool
	round     uint64 // in which it was asked last
	no        bool   // the node says that it has none, or does not answer
	silence   int    // questions in a row without any answer
}

// health asks nodes. A node that was not asked, or is new, counts as healthy.
type health struct {
	o       Options
	wake    chan struct{}
	metrics *prometheus.GaugeVec

	mu      sync.Mutex
	answers map[question]*answer
	round   uint64 // of questions
}

func newHealth(o Options) *health {
	return &health{o: o, wake: make(chan struct{}, 1), answers: map[question]*answer{},
		metrics: promauto.With(o.Metrics).NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_reach_health_checks", Help: "Pairs of node and healthCheckNodePort that are asked, by whether the node has endpoints.",
		}, []string{"healthy"})}
}

// get is a GET that takes no proxy, no redirect and no connection from before: the answer is to be the node's, and of now.
func get(ctx context.Context, url string) (int, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	_, _ = io.CopyN(io.Discard, response.Body, 4096) // lets the node finish; what it says beside the status is not of use
	return response.StatusCode, response.Body.Close()
}

func (h *health) healthy(q question) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.answers[q]
	return a == nil || !a.no
}

// take finds out what is to be asked: of each Service with a healthCheckNodePort the nodes that have endpoints of it, and
// whose pods are not reached directly.
func (h *health) take(s *model.Snapshot) {
	addrs := map[model.ObjectRef]netip.Addr{}
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Reach == model.ReachNodes && len(n.InternalIPs) > 0 {
			addrs[n.Ref] = n.InternalIPs[0]
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := map[question]*answer{}
	for i := range s.Services {
		if svc := &s.Services[i]; svc.HealthCheckNodePort != 0 {
			h.questions(svc, addrs, next)
		}
	}
	h.answers = next
	h.count()
	for _, a := range next {
		if !a.asked {
			select {
			case h.wake <- struct{}{}:
			default:
			}
			return
		}
	}
}

// questions adds those about one Service, with the answers that are known. h.mu is held.
func (h *health) questions(svc *model.Service, addrs map[model.ObjectRef]netip.Addr, into map[question]*answer) {
	for i := range svc.Ports {
		for _, e := range svc.Ports[i].Endpoints {
			q := question{model.ObjectRef{Cluster: svc.Ref.Cluster, Kind: "Node", Name: e.Node}, svc.HealthCheckNodePort}
			addr, known := addrs[q.node]
			if !known || into[q] != nil {
				continue
			}
			a := h.answers[q]
			if a == nil || a.addr != addr {
				a = &answer{addr: addr, namespace: svc.Ref.Namespace}
			}
			into[q] = a
		}
	}
}

// run asks until ctx ends: what is new at once, everything each HealthInterval, or, where it is much, what there is time for.
func (h *health) run(ctx context.Context) {
	tick := time.NewTicker(h.o.HealthInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
			h.ask(ctx, func(a *answer) bool { return !a.asked })
		case <-tick.C:
			h.ask(ctx, func(*answer) bool { return true })
		}
	}
}

// ask asks what is due, a few at once and one after the other, and returns when all have answered.
func (h *health) ask(ctx context.Context, due func(*answer) bool) {
	var all sync.WaitGroup
	defer all.Wait()
	pause := time.NewTicker(questionPause)
	defer pause.Stop()
	places := make(chan struct{}, questionsAtOnce)
	for _, q := range h.due(due) {
		select {
		case <-ctx.Done():
			return
		case places <- struct{}{}:
		}
		all.Go(func() {
			defer func() { <-places }()
			h.one(ctx, q.question, q.addr)
		})
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

// A dueQuestion is a question, and whom to ask it.
type dueQuestion struct {
	question
	addr netip.Addr
}

// due are the questions of the next round, as many as fit into it: of each namespace in turn the one that was not asked for the
// longest time, so that no namespace with many Services keeps those of others from being asked.
func (h *health) due(due func(*answer) bool) []dueQuestion {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.round++
	waiting, all := map[string][]question{}, 0
	for q, a := range h.answers {
		if due(a) {
			waiting[a.namespace] = append(waiting[a.namespace], q)
			all++
		}
	}
	for _, list := range waiting {
		slices.SortFunc(list, func(p, q question) int { return cmp.Compare(h.answers[p].round, h.answers[q].round) })
	}
	out := make([]dueQuestion, min(all, max(1, int(h.o.HealthInterval/questionPause))))
	for i := 0; i < len(out); {
		for namespace, list := range waiting {
			if len(list) == 0 || i == len(out) {
				continue
			}
			a := h.answers[list[0]]
			a.round, out[i] = h.round, dueQuestion{list[0], a.addr}
			waiting[namespace] = list[1:]
			i++
		}
	}
	return out
}

// one asks one question.
func (h *health) one(ctx context.Context, q question, addr netip.Addr) {
	limited, cancel := context.WithTimeout(ctx, h.o.Timeout)
	defer cancel()
	status, err := h.o.Get(limited, "http://"+net.JoinHostPort(addr.String(), strconv.Itoa(int(q.port)))+"/healthz")
	if ctx.Err() != nil {
		return // cut short: it says nothing
	}
	h.record(q, status, err)
}

// record takes note of an answer. A status other than 200 is a clear no; silence must last, as one lost packet proves nothing.
func (h *health) record(q question, status int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.answers[q]
	if a == nil {
		return
	}
	before := a.no
	a.asked = true
	switch {
	case err != nil:
		a.silence++
		a.no = a.no || a.silence >= failuresToFall
	default:
		a.silence, a.no = 0, status != http.StatusOK
	}
	if a.no == before {
		return
	}
	h.count()
	why := fmt.Sprintf("status %d", status)
	if err != nil {
		why = err.Error()
	}
	h.o.Log.Info("node tells anew whether it has endpoints of a Service", "node", q.node.Name, "healthCheckNodePort", q.port, "healthy", !a.no, "why", why)
	h.o.Changed()
}

// count brings the gauge up to date. h.mu is held.
func (h *health) count() {
	no := 0
	for _, a := range h.answers {
		if a.no {
			no++
		}
	}
	h.metrics.WithLabelValues("true").Set(float64(len(h.answers) - no))
	h.metrics.WithLabelValues("false").Set(float64(no))
}
