package main

import (
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/watcher"
)

func newRun() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve a cluster until SIGTERM",
		Long: `Serve the Services and Ingresses of a cluster, or of a folder of manifests, from this machine.

The kernel dataplane (iptables) needs CAP_NET_ADMIN and CAP_NET_RAW, HTTP on port 80 needs CAP_NET_BIND_SERVICE. On SIGTERM HTTP
requests in flight are finished; rules stay in place, so that connections to NodePorts and LoadBalancer addresses live on. To
remove them too: sallyport cleanup.`,
		Example: `  sallyport run --kubeconfig ~/.kube/config
  sallyport run --config /etc/sallyport/sallyport.yaml
  sallyport run --manifests ./manifests --dataplane userspace --http-port 8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			log := newLogger(cmd.ErrOrStderr(), c.Edge.Log)
			registry := prometheus.NewRegistry()
			sources, err := newSources(c, log, registry)
			if err != nil {
				return err
			}
			e, err := newEdge(c, sources, log, registry)
			if err != nil {
				return err
			}
			log.Info("starting", "version", version(), "edge", c.Edge.Name, "admin", e.admin.Addr().String(),
				"dataplane", c.L4.Dataplane, "reach", c.Reach)
			err = e.run(cmd.Context())
			log.Info("stopped")
			return err
		},
	}
	f.add(cmd)
	f.addSource(cmd)
	return cmd
}

// newSources makes one source for each configured cluster, or one for the folder of manifests.
func newSources(c config.Config, log *slog.Logger, r prometheus.Registerer) ([]watcher.Source, error) {
	o := watcher.Options{Version: version(), Log: log.With("part", "watcher"), Metrics: watcher.NewMetrics(r)}
	watcher.LogClientGo(o.Log)
	if c.Manifests != "" {
		return []watcher.Source{watcher.NewManifests(c.Manifests, o)}, nil
	}
	clusters := c.Clusters
	if len(clusters) == 0 {
		clusters = []config.Cluster{{}}
	}
	var out []watcher.Source
	for _, k := range clusters {
		rest, origin, err := watcher.Kubeconfig(k.Kubeconfig, k.Context)
		if err != nil {
			return nil, err
		}
		log.Info("using kubeconfig", "cluster", k.Name, "from", origin, "server", rest.Host)
		o.Cluster = k.Name
		s, err := watcher.NewAPI(rest, o)
		if err != nil {
			return nil, fmt.Errorf("cluster %q: %w", k.Name, err)
		}
		out = append(out, s)
	}
	return out, nil
}
