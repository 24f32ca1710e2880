package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
)

func newRun() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve a cluster until SIGTERM",
		Long: `Serve the Services and Ingresses of a cluster, or of a folder of manifests, from this machine.

The dataplanes of the kernel (iptables, nftables) need CAP_NET_ADMIN and CAP_NET_RAW, HTTP on port 80 needs CAP_NET_BIND_SERVICE. On SIGTERM HTTP
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
			inputs, err := newInputs(c, log, registry)
			if err != nil {
				return err
			}
			e, err := newEdge(c, inputs, log, registry)
			if err != nil {
				return err
			}
			if c.L4.Dataplane == config.DataplaneUserspace {
				leaveKernel(cmd.Context(), c, log)
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
