package status

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"sallyport/watcher/model"
)

// A resource is what the API server may refuse to let us write, as RBAC names it.
type resource string

// All that is written. The verbs are in deploy/rbac.
const (
	resourceService resource = "services/status"
	resourceIngress resource = "ingresses/status"
	resourceEvent   resource = "events"
	resourceLease   resource = "leases"
)

// remedies say what a refusal costs and what to grant.
var remedies = map[resource]string{
	resourceService: "addresses of Services are not shown: grant patch on services/status",
	resourceIngress: "addresses of Ingresses are not shown: grant patch on ingresses/status of networking.k8s.io",
	resourceEvent:   "problems are not shown as Events: grant create and patch on events",
	resourceLease:   "this edge cannot write status: make the namespace, and grant create, get and update on leases of coordination.k8s.io in it",
}

// refusalPause is how long a resource that was refused is not tried again.
const refusalPause = 10 * time.Second

// refusals are the resources that the API server refuses us. The zero value, with changed, has none.
type refusals struct {
	changed func() // called when a resource comes or goes

	mu    sync.Mutex
	known map[resource]refusal
}

type refusal struct {
	err   error
	until time.Time // not tried before
}

func (r *refusals) refuse(what resource, err error) {
	r.mu.Lock()
	_, known := r.known[what]
	if r.known == nil {
		r.known = map[resource]refusal{}
	}
	r.known[what] = refusal{fmt.Errorf("write %s: %w", what, err), time.Now().Add(refusalPause)}
	r.mu.Unlock()
	if !known {
		r.changed()
	}
}

func (r *refusals) permit(what resource) {
	r.mu.Lock()
	_, known := r.known[what]
	delete(r.known, what)
	r.mu.Unlock()
	if known {
		r.changed()
	}
}

// pausing returns the error of a resource that is not to be tried now, or nil.
func (r *refusals) pausing(what resource) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.known[what]; time.Now().Before(k.until) {
		return k.err
	}
	return nil
}

func (r *refusals) problems(cluster string) []model.Problem {
	name := cluster
	if name == "" {
		name = "default"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []model.Problem
	for _, what := range slices.Sorted(maps.Keys(r.known)) {
		list = append(list, model.Problem{
			Object: model.ObjectRef{Kind: "Cluster", Name: name}, Field: string(what), Reason: model.ReasonStatusForbidden,
			Message: "the API server refuses it; " + remedies[what],
		})
	}
	return list
}
