package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/rules"
	"sallyport/watcher"
)

func newCheck() *cobra.Command {
	var f flags
	var out output
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration and say what it would do here",
		Long: `Read the configuration and the kubeconfig, report each mistake by file, line and key, say what "run" would do, and what on
this machine would get in its way. Nothing is changed, and the cluster is not asked.`,
		Example: `  sallyport check --config sallyport.yaml
  sallyport check --kubeconfig ~/.kube/config`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			r, err := review(cmd.Context(), c)
			if err != nil {
				return err
			}
			return out.write(cmd.OutOrStdout(), r, r.writeText)
		},
	}
	f.add(cmd)
	f.addSource(cmd)
	out.add(cmd)
	return cmd
}

// A checkReport is what "sallyport check" prints.
type checkReport struct {
	Edge     string          `json:"edge"`
	Does     []line          `json:"does"`     // what an edge with this configuration does
	Findings []rules.Finding `json:"findings"` // what on this machine may get in its way
}

// A line is a sentence about a subject.
type line struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

func review(ctx context.Context, c config.Config) (checkReport, error) {
	source, err := describeSource(c)
	if err != nil {
		return checkReport{}, err
	}
	r := checkReport{Edge: c.Edge.Name, Findings: []rules.Finding{}, Does: []line{
		{"serves", source},
		{"reaches pods", describeReach(c)},
		{"NodePorts", describeNodePorts(c)},
		{"VIPs", describePools(c)},
		{"HTTP", describeHTTP(c)},
		{"HTTPS", describeHTTPS(c)},
		{"writes", describeStatus(c)},
		{"admin", fmt.Sprintf("http://%s/healthz, /readyz, /metrics; %s", c.Edge.Admin.Address, cmp.Or(c.Edge.Admin.Socket, "no socket"))},
	}}
	if c.L4.Dataplane == config.DataplaneUserspace {
		return r, nil
	}
	found, err := rules.Inspect(ctx, rulesOptions(c))
	r.Findings = append(r.Findings, found...)
	return r, err
}

// writeText writes the report for people.
func (r checkReport) writeText(w io.Writer) error {
	fmt.Fprintf(w, "edge %s\n", r.Edge)
	for _, l := range r.Does {
		fmt.Fprintf(w, "  %-13s%s\n", l.Subject, l.Text)
	}
	if len(r.Findings) > 0 {
		fmt.Fprintln(w, "on this machine")
	}
	for _, f := range r.Findings {
		fmt.Fprintf(w, "  %-13s%s\n", f.Subject, strings.ReplaceAll(f.Message, "\n", "\n"+strings.Repeat(" ", 15)))
	}
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
	where := strings.Trim(fmt.Sprint(nodePortAddresses(c.L4)), "[]")
	how := map[string]string{
		config.DataplaneIptables:  fmt.Sprintf("by iptables (backend %s)", c.L4.IptablesBackend),
		config.DataplaneNFTables:  "by nftables",
		config.DataplaneUserspace: "in user space",
	}[c.L4.Dataplane]
	source := "endpoints see the edge's address"
	if c.L4.KeepsSource() {
		source = "endpoints see the clients' addresses"
	}
	return fmt.Sprintf("on %s, %s; %s", cmp.Or(where, "no address: this machine has no default route, set l4.nodePortAddresses"), how, source)
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
	return "on " + strings.Join(c.L7.HTTPAddresses(), ", ")
}

func describeHTTPS(c config.Config) string {
	on := c.L7.HTTPSAddresses()
	if !c.L7.Enabled || len(on) == 0 {
		return "off"
	}
	var k config.Cluster
	if len(c.Clusters) > 0 {
		k = c.Clusters[0]
	}
	text := fmt.Sprintf("on %s, TLS %s or later", strings.Join(on, ", "), c.L7.TLS.MinVersion)
	if c.Manifests == "" {
		text += map[string]string{
			config.SecretsNone:       ", reading no Secrets",
			config.SecretsNamed:      ", reading the Secrets that Ingresses name",
			config.SecretsNamespaces: ", reading the TLS Secrets of namespaces in which Ingresses name one",
			config.SecretsCluster:    ", reading all TLS Secrets",
		}[k.Access()]
	}
	return text
}

func describeStatus(c config.Config) string {
	if !c.Status.Enabled || c.Manifests != "" {
		return "nothing to the cluster"
	}
	text := "addresses of Services and Events"
	if a := ingressAddresses(c); len(a) > 0 {
		text += "; Ingresses get " + strings.Trim(fmt.Sprint(a), "[]")
	}
	return fmt.Sprintf("%s; as holder of the Lease in namespace %s", text, c.Status.LeaseNamespace)
}
