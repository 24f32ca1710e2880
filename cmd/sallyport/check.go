package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/watcher"
)

func newCheck() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration and say what it would do",
		Long:  `Read the configuration and the kubeconfig, report each mistake by file, line and key, and say what "run" would do. The cluster is not asked.`,
		Example: `  sallyport check --config sallyport.yaml
  sallyport check --kubeconfig ~/.kube/config`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			return describe(cmd.OutOrStdout(), c)
		},
	}
	f.add(cmd)
	f.addSource(cmd)
	return cmd
}

// describe says in sentences what an edge with this configuration does.
func describe(w io.Writer, c config.Config) error {
	source, err := describeSource(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "edge %s\n", c.Edge.Name)
	fmt.Fprintf(w, "  serves       %s\n", source)
	fmt.Fprintf(w, "  reaches pods %s\n", describeReach(c))
	fmt.Fprintf(w, "  NodePorts    %s\n", describeNodePorts(c))
	fmt.Fprintf(w, "  VIPs         %s\n", describePools(c))
	fmt.Fprintf(w, "  HTTP         %s\n", describeHTTP(c))
	fmt.Fprintf(w, "  admin        http://%s/healthz, /readyz, /metrics\n", c.Edge.Admin.Address)
	return nil
}

func describeSource(c config.Config) (string, error) {
	if c.Manifests != "" {
		return "the manifests in " + c.Manifests, nil
	}
	var k config.Cluster
	if len(c.Clusters) > 0 {
		k = c.Clusters[0]
	}
	rest, origin, err := watcher.Kubeconfig(k.Kubeconfig, k.Context)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("the cluster at %s (%s)", rest.Host, origin), nil
}

func describeReach(c config.Config) string {
	return map[string]string{
		"auto":  "auto: directly where a probe answers, through the nodes' node ports elsewhere",
		"pods":  "directly, by routes to the nodes' podCIDRs",
		"nodes": "through the nodes' node ports",
	}[string(c.Reach)]
}

func describeNodePorts(c config.Config) string {
	where := "all addresses of this machine"
	if len(c.L4.NodePortAddresses) > 0 {
		where = strings.Trim(fmt.Sprint(c.L4.NodePortAddresses), "[]")
	}
	how := "in user space"
	if c.L4.Dataplane == config.DataplaneIptables {
		how = fmt.Sprintf("by iptables (backend %s)", c.L4.IptablesBackend)
	}
	return fmt.Sprintf("on %s, %s, snat %s", where, how, c.L4.SNAT)
}

func describePools(c config.Config) string {
	if len(c.Pools) == 0 {
		return "none: loadBalancer.ipAddressPools is empty"
	}
	var out []string
	for _, p := range c.Pools {
		out = append(out, p.String())
	}
	return strings.Join(out, "; ")
}

func describeHTTP(c config.Config) string {
	if !c.L7.Enabled {
		return "off"
	}
	return "on " + strings.Join(c.L7.ListenAddresses(), ", ")
}
