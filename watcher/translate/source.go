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
	ns := ref.Namespace
	return t.noSecrets[objects.Name{Namespace: ns, Name: ref.Name}] || t.noSecrets[objects.Name{Namespace: ns}] || t.noSecrets[objects.Name{}]
}

// deniedSecrets are the Secrets that may not be read: single ones, those of a namespace by its name alone, or all by the
// empty Name.
func deniedSecrets(c objects.Cluster) map[objects.Name]bool {
	denied := map[objects.Name]bool{}
	for _, d := range c.Denied {
		if d.Kind == "Secret" {
			denied[objects.Name{Namespace: d.Namespace, Name: d.Name}] = true
		}
	}
	return denied
}
