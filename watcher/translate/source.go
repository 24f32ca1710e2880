package translate

import (
	"cmp"
	"net/http"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// unnamedCluster stands in Problems for the only cluster of a configuration, which has no name.
const unnamedCluster = "default"

// source records what is to be known about where the objects come from.
func (t *translator) source() {
	t.out.Stale = t.out.Stale || t.in.Stale
	self := model.ObjectRef{Kind: "Cluster", Name: cmp.Or(t.in.Name, unnamedCluster)}
	if t.in.Conflict != "" {
		t.problem(self, "", model.ReasonClusterChanged, "%s", t.in.Conflict)
	}
	for _, d := range t.in.Denied {
		t.denied(self, d)
	}
}

// denied records that a kind cannot be read. Of a single Secret the Ingresses that name it tell.
func (t *translator) denied(cluster model.ObjectRef, d objects.Denial) {
	where := ""
	if d.Namespace != "" {
		where = " in namespace " + d.Namespace
	}
	switch {
	case d.Name != "":
	case d.Code == http.StatusNotFound:
		t.problem(cluster, d.Kind, model.ReasonKindNotFound, "the API server does not have this kind%s (404): it is served as if there were none", where)
	default:
		t.problem(cluster, d.Kind, model.ReasonKindForbidden,
			"the API server does not let this edge list and watch this kind%s (%d): it is served as if there were none; grant both to its account (deploy/rbac)", where, d.Code)
	}
}

// secretDenied says whether the Secret is missing because it may not be read.
func (t *translator) secretDenied(ref model.ObjectRef) bool {
	for _, d := range t.in.Denied {
		if d.Kind == "Secret" && (d.Namespace == "" || d.Namespace == ref.Namespace) && (d.Name == "" || d.Name == ref.Name) {
			return true
		}
	}
	return false
}
