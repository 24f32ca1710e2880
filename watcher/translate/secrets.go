package translate

import (
	"slices"

	"sallyport/watcher/objects"
)

// WantedSecrets are the Secrets that a cluster's objects and the options name: those of the Ingresses that are ours, and
// the default certificate. They are ordered, and none if TLS is not served.
func WantedSecrets(c objects.Cluster, o Options) []objects.Name {
	if !o.TLS {
		return nil
	}
	var names []objects.Name
	if o.DefaultCertificate != (objects.Name{}) {
		names = append(names, o.DefaultCertificate)
	}
	classes := classesOf(c)
	for _, ing := range c.Ingresses {
		if !classes.serve(ing) {
			continue
		}
		for _, e := range tlsEntries(ing) {
			if e.SecretName != "" {
				names = append(names, objects.Name{Namespace: ing.Namespace, Name: e.SecretName})
			}
		}
	}
	slices.SortFunc(names, compareNames)
	return slices.Compact(names)
}
