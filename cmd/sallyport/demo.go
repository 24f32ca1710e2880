package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/cmd/sallyport/demo"
	"sallyport/watcher/model"
)

func newDemo() *cobra.Command {
	var f flags
	address := netip.MustParseAddr("127.0.0.1")
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Serve a built-in example: no cluster, no root",
		Long: `Serve a Service of three pods at NodePort 30001 and an Ingress on port 8080. Manifests and pods are built into the
program; L4 runs in user space. It is the same pipeline that "run" serves a cluster with.`,
		Example: `  sallyport demo
  sallyport demo --address 0.0.0.0 --http-port 8081`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := demoConfig(f, address)
			if err != nil {
				return err
			}
			return runDemo(cmd, c, address)
		},
	}
	cmd.Flags().TextVar(&address, "address", address, "`address` to listen on")
	cmd.Flags().StringVar(&f.httpPort, "http-port", "8080", "`port` that HTTP is served on")
	cmd.Flags().StringVar(&f.httpsPort, "https-port", "8443", "`port` that HTTPS is served on, 0 for none")
	f.addProcess(cmd)
	return cmd
}

// demoConfig is the default configuration without its need for a cluster, root or port 80.
func demoConfig(f flags, address netip.Addr) (config.Config, error) {
	c := config.Default()
	c.L4.Dataplane = config.DataplaneUserspace
	c.Reach = model.ReachPods
	c.Edge.Log.Level = "warn"
	c.Edge.Admin.Socket = filepath.Join(os.TempDir(), fmt.Sprintf("sallyport-demo-%d.sock", os.Getuid()))
	c.L7.Addresses = []string{address.String()}
	c.L4.NodePortAddresses = []netip.Prefix{netip.PrefixFrom(address, address.BitLen())}
	if address.IsUnspecified() {
		c.L4.NodePortAddresses = []netip.Prefix{netip.PrefixFrom(address, 0)}
	}
	if err := f.override(&c); err != nil {
		return c, err
	}
	return c, c.Check()
}

func runDemo(cmd *cobra.Command, c config.Config, address netip.Addr) error {
	cluster, err := demo.Start()
	if err != nil {
		return err
	}
	log := newLogger(cmd.ErrOrStderr(), c.Edge.Log)
	e, err := newEdge(c, []input{{Source: cluster, about: "the built-in demo"}}, log, prometheus.NewRegistry())
	if err != nil {
		return errors.Join(err, cluster.Close())
	}
	e.pipeline.options.AllowLoopbackEndpoints = true
	printDemo(cmd.OutOrStdout(), e, address)
	return e.run(cmd.Context())
}

// printDemo prints commands that work when typed.
func printDemo(w io.Writer, e *edge, address netip.Addr) {
	if address.IsUnspecified() {
		address = netip.MustParseAddr("127.0.0.1")
	}
	http := netip.AddrPortFrom(address, e.config.L7.HTTPPort)
	https := netip.AddrPortFrom(address, e.config.L7.HTTPSPort)
	program, err := os.Executable()
	if err != nil {
		program = "sallyport"
	}
	fmt.Fprintf(w, "Sallyport %s serves a demo: Service \"hostnames\" of three pods, and Ingress \"demo\". Try, in another terminal:\n\n", version())
	for _, line := range []struct{ command, shows string }{
		{fmt.Sprintf("curl http://%s/", netip.AddrPortFrom(address, 30001)), "NodePort: another pod each time"},
		{fmt.Sprintf("curl -H 'Host: demo.example.com' http://%s/", http), "Ingress: host and path"},
		{fmt.Sprintf("curl -i -H 'Host: demo.example.com' http://%s/empty", http), "503: a Service without endpoints"},
		{fmt.Sprintf("curl -i http://%s/", http), "404: a host that no Ingress names"},
		{fmt.Sprintf("curl -k --resolve secure.example.com:%d:%s https://secure.example.com:%[1]d/", https.Port(), address), "Ingress by HTTPS, with a certificate of its own"},
		{fmt.Sprintf("%s explain --socket %s http://demo.example.com:%d/", program, e.config.Edge.Admin.Socket, http.Port()), "where a request goes, and why"},
		{fmt.Sprintf("curl -s http://%s/metrics | grep sallyport_", e.admin.Addr()), "metrics"},
	} {
		fmt.Fprintf(w, "  %-68s # %s\n", line.command, line.shows)
	}
	fmt.Fprintln(w, "\nCtrl-C ends it. Next: sallyport run --kubeconfig FILE serves a real cluster.")
}
