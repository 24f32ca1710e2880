package watcher

import (
	"log/slog"

	"sallyport/watcher/objects"
)

// Options configure a Source.
type Options struct {
	// Cluster is the cluster's name in the configuration, empty if there is only one.
	Cluster string
	// Version goes into the User-Agent of requests to the API server: "sallyport/VERSION".
	Version string
	Log     *slog.Logger
	Metrics *Metrics // from NewMetrics

	// Kubeconfig is what the config was made of: when its files change, the API server is connected to anew. nil: the
	// config never changes. Used by NewAPI only, as are Secrets.
	Kubeconfig *KubeconfigLocation
	// Secrets says which Secrets are read.
	Secrets SecretOptions
}

// A KubeconfigLocation are the arguments of Kubeconfig.
type KubeconfigLocation struct{ Path, Context string }

// How Secrets are read: SecretOptions.Access, and the key clusters[].secrets of the configuration. RBAC cannot tell the
// types of Secrets apart, so that what the edge may read is a choice.
const (
	SecretsNone       = "none"       // not at all
	SecretsNamed      = "named"      // those that are wanted, by a watch each: a Role can name them
	SecretsNamespaces = "namespaces" // all of type kubernetes.io/tls in the namespaces of those that are wanted
	SecretsCluster    = "cluster"    // all of type kubernetes.io/tls
)

// SecretOptions say which Secrets are read. The zero value reads none.
type SecretOptions struct {
	// Access is SecretsNone, SecretsNamed, SecretsNamespaces or SecretsCluster; empty is SecretsNone.
	Access string
	// Wanted lists the Secrets that the objects name; the objects handed in are complete but for their Secrets. It must
	// be pure, and is called for each Objects.
	Wanted func(objects.Cluster) []objects.Name
}
