package main

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/cmd/sallyport/config"
	"sallyport/watcher"
	"sallyport/watcher/objects"
	"sallyport/watcher/translate"
)

// An input is where an edge's objects come from.
type input struct {
	watcher.Source
	about string       // the API server's URL or a folder, for people
	api   *watcher.API // nil for what is no cluster
	name  string       // of the cluster in the configuration
}

// health is how the source does. One that does not say, as the demo's, is always there.
func (i input) health() watcher.Health {
	if h, ok := i.Source.(interface{ Health() watcher.Health }); ok {
		return h.Health()
	}
	return watcher.Health{Server: i.about, Up: true}
}

// newInputs makes one source for each configured cluster, or one for the folder of manifests.
func newInputs(c config.Config, log *slog.Logger, r prometheus.Registerer) ([]input, error) {
	o := watcher.Options{Version: version(), Log: log.With("part", "watcher"), Metrics: watcher.NewMetrics(r)}
	watcher.LogClientGo(o.Log)
	if c.Manifests != "" {
		return []input{{Source: watcher.NewManifests(c.Manifests, o), about: c.Manifests}}, nil
	}
	clusters := c.Clusters
	if len(clusters) == 0 {
		clusters = []config.Cluster{{}}
	}
	var out []input
	for _, k := range clusters {
		i, err := newInput(c, k, o)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}

func newInput(c config.Config, k config.Cluster, o watcher.Options) (input, error) {
	config, origin, err := watcher.Kubeconfig(k.Kubeconfig, k.Context)
	if err != nil {
		return input{}, err
	}
	o.Log.Info("using kubeconfig", "cluster", k.Name, "from", origin, "server", config.Host)
	o.Cluster = k.Name
	o.Kubeconfig = &watcher.KubeconfigLocation{Path: k.Kubeconfig, Context: k.Context}
	wanting := translateOptions(c, nil)
	o.Secrets = watcher.SecretOptions{Access: k.Access(), Wanted: func(in objects.Cluster) []objects.Name {
		return translate.WantedSecrets(in, wanting)
	}}
	api, err := watcher.NewAPI(config, o)
	if err != nil {
		return input{}, fmt.Errorf("cluster %q: %w", k.Name, err)
	}
	i := input{Source: api, about: config.Host, api: api, name: k.Name}
	if c.Edge.StateDir != "" {
		i.Source = watcher.NewLastGood(api, filepath.Join(c.Edge.StateDir, lastGoodName(k.Name)), o)
	}
	return i, nil
}

// lastGoodName is the file's name in edge.stateDir.
func lastGoodName(cluster string) string {
	if cluster == "" {
		return "objects.yaml"
	}
	return "objects-" + cluster + ".yaml"
}
