package reach

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/watcher/model"
)

// nodes answer at their healthCheckNodePorts what the test stores by URL; else they are silent.
type nodes struct {
	mu      sync.Mutex
	status  map[string]int
	asked   map[string]int
	now     int // questions that are under way
	most    int // of them at one time
	changes int
}

func (n *nodes) get(ctx context.Context, url string) (int, error) {
	n.mu.Lock()
	n.asked[url]++
	n.now++
	n.most = max(n.most, n.now)
	status, ok := n.status[url]
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.now--
	}()
	if !ok {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return status, nil
}

func (n *nodes) say(status int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status[urlA] = status
}

func newHealthRig(t *testing.T) (*Prober, *nodes) {
	n := &nodes{status: map[string]int{}, asked: map[string]int{}}
	p := New(Options{Reach: model.ReachNodes, Get: n.get, Changed: func() { n.mu.Lock(); n.changes++; n.mu.Unlock() },
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { _ = p.Run(ctx) }() // ends with the test; Run always returns nil
	return p, n
}

// urls is how many URLs were asked, and how often that of node-a.
func (n *nodes) urls() (all, ofA int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.asked), n.asked[urlA]
}

// local is a Service with endpoints on node-a, and on node-b, whose pods are reached directly.
func local() *model.Snapshot {
	node := func(name, ip string, r model.Reach) model.Node {
		return model.Node{Ref: model.ObjectRef{Kind: "Node", Name: name}, InternalIPs: []netip.Addr{netip.MustParseAddr(ip)}, Reach: r}
	}
	endpoint := func(addr, node string) model.Endpoint {
		return model.Endpoint{Addr: netip.MustParseAddrPort(addr), Node: node, Ready: true}
	}
	return &model.Snapshot{
		Nodes: []model.Node{node("node-a", "192.0.2.1", model.ReachNodes), node("node-b", "192.0.2.2", model.ReachPods), node("node-c", "192.0.2.3", model.ReachNodes)},
		Services: []model.Service{{Local: true, HealthCheckNodePort: 30900, Ports: []model.ServicePort{
			{Endpoints: []model.Endpoint{endpoint("10.1.0.1:80", "node-a"), endpoint("10.1.0.2:80", "node-a"), endpoint("10.1.1.1:80", "node-b"), endpoint("10.1.9.1:80", "gone")}}}}},
	}
}

const urlA = "http://192.0.2.1:30900/healthz"

func (n *nodes) want(t *testing.T, p *Prober, healthy bool, changes int) {
	t.Helper()
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := p.NodeHealthy(nodeA, 30900); got != healthy || n.changes != changes {
		t.Errorf("healthy %v after %d changes, want %v after %d", got, n.changes, healthy, changes)
	}
}

func TestNodesAreAskedForTheirEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, n := newHealthRig(t)
		n.say(http.StatusServiceUnavailable)
		n.want(t, p, true, 0)
		_ = p.Reconcile(t.Context(), local())
		n.want(t, p, false, 1) // at once
		if all, ofA := n.urls(); all != 1 || ofA != 1 {
			t.Errorf("asked %d URLs, %d times %s, want that once", all, ofA, urlA)
		}
		n.say(http.StatusOK)
		time.Sleep(4 * time.Second) // virtual time
		n.want(t, p, true, 2)
		_ = p.Reconcile(t.Context(), local()) // what is known stays
		n.want(t, p, true, 2)
		_ = p.Reconcile(t.Context(), &model.Snapshot{})
		_, before := n.urls()
		time.Sleep(time.Minute)
		n.want(t, p, true, 2)
		if _, after := n.urls(); after != before {
			t.Error("asked about a Service that is gone")
		}
	})
}

func TestSilenceMustLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, n := newHealthRig(t)
		_ = p.Reconcile(t.Context(), local())
		time.Sleep(6 * time.Second) // virtual time; two questions without an answer
		n.want(t, p, true, 0)
		time.Sleep(4 * time.Second)
		n.want(t, p, false, 1)
		n.say(http.StatusOK)
		time.Sleep(4 * time.Second)
		n.want(t, p, true, 2)
	})
}

// TestQuestionsAreBounded has 1,000 Services on a node that does not answer.
func TestQuestionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, n := newHealthRig(t)
		s := local()
		for i := range uint16(1000) {
			svc := s.Services[0]
			svc.HealthCheckNodePort = 31000 + i
			s.Services = append(s.Services, svc)
		}
		_ = p.Reconcile(t.Context(), s)
		start := time.Now()
		for all := 0; all < 1001 && time.Since(start) < time.Hour; all, _ = n.urls() {
			time.Sleep(time.Second) // virtual time
		}
		synctest.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		if took := time.Since(start); n.most > questionsAtOnce || took < 10*time.Second || took > 2*time.Minute {
			t.Errorf("%d questions at once, all of them in %v", n.most, took)
		}
	})
}

// TestGet asks a real server, which redirects once.
func TestGet(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			http.Redirect(w, r, "/healthz", http.StatusFound)
		}
	}))
	defer server.Close()
	for path, want := range map[string]int{"/healthz": http.StatusOK, "/elsewhere": http.StatusFound} {
		if got, err := get(t.Context(), server.URL+path); got != want || err != nil {
			t.Errorf("%s: status %d, %v; want %d", path, got, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var u *url.Error
	if _, err := get(ctx, server.URL); !errors.As(err, &u) || !errors.Is(err, context.Canceled) {
		t.Errorf("cut short: %v", err)
	}
}

// TestNobodyKeepsNodesBusy: however many questions the Services of one namespace make, those of another are asked in time.
func TestNobodyKeepsNodesBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, n := newHealthRig(t)
		s := local()
		s.Services[0].Ref.Namespace = "shop"
		hostile := &model.Snapshot{}
		for i := range 2000 { // silent ones, which take longest
			svc := local().Services[0]
			svc.Ref.Namespace, svc.HealthCheckNodePort = "hostile", uint16(31000+i)
			hostile.Services = append(hostile.Services, svc)
		}
		s.Services = append(s.Services, hostile.Services...)
		_ = p.Reconcile(t.Context(), s)
		for _, status := range []int{http.StatusServiceUnavailable, http.StatusOK} {
			n.say(status)
			time.Sleep(time.Minute) // virtual time
			if got, want := p.NodeHealthy(nodeA, 30900), status == http.StatusOK; got != want {
				t.Errorf("a minute after status %d: healthy %v", status, got)
			}
		}
		time.Sleep(3 * time.Minute)
		if all, _ := n.urls(); all != 2001 {
			t.Errorf("%d questions have been asked, want each of 2001", all)
		}
	})
}
