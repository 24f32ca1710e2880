package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strconv"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/watcher/model"
)

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "sallyport",
		Short: "The edge of a bare-metal Kubernetes cluster",
		Long: `Sallyport runs on edge machines outside a Kubernetes cluster and lets the outside world in: it forwards NodePorts
and LoadBalancer addresses in the kernel and proxies HTTP by host and path.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newRun(), newStatus(), newExplain(), newCheck(), newRender(), newCleanup(), newKubeconfig(), newDemo(), newVersion())
	return root
}

// flags are those that override a key of sallyport.yaml.
type flags struct {
	file       string
	kubeconfig string
	context    string
	manifests  string
	reach      string
	dataplane  string
	httpPort   string
	httpsPort  string
	admin      string
	socket     string
	logFormat  string
	logLevel   string
}

// addConfig declares the flag that names the configuration.
func addConfig(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "configuration `file` (default "+config.DefaultFile+" if it exists)")
}

// add declares the flags of commands that say what an edge does.
func (f *flags) add(cmd *cobra.Command) {
	addConfig(cmd, &f.file)
	s := cmd.Flags()
	s.StringVar(&f.reach, "reach", "", "how pods are reached: auto, pods or nodes (overrides reach)")
	s.StringVar(&f.dataplane, "dataplane", "", "iptables, nftables or userspace (overrides l4.dataplane)")
	s.StringVar(&f.httpPort, "http-port", "", "`port` that HTTP is served on (overrides l7.httpPort)")
	s.StringVar(&f.httpsPort, "https-port", "", "`port` that HTTPS is served on, 0 for none (overrides l7.httpsPort)")
}

// addSource declares the flags that say where objects come from and how the process behaves.
func (f *flags) addSource(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig `file` (default: $KUBECONFIG, ~/.kube/config, in-cluster)")
	s.StringVar(&f.context, "context", "", "kubeconfig `context` (default: its current-context)")
	s.StringVar(&f.manifests, "manifests", "", "`folder` of manifests to serve instead of a cluster, reloaded on change")
	cmd.MarkFlagsMutuallyExclusive("manifests", "kubeconfig")
	cmd.MarkFlagsMutuallyExclusive("manifests", "context")
	f.addProcess(cmd)
}

// addProcess declares the flags of a command that keeps running.
func (f *flags) addProcess(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.admin, "admin-address", "", "`address:port` of /healthz, /readyz and /metrics (overrides edge.admin.address)")
	s.StringVar(&f.socket, "socket", "", "path of the admin `socket` (overrides edge.admin.socket)")
	s.StringVar(&f.logFormat, "log-format", "", "text or json (overrides edge.log.format)")
	s.StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error (overrides edge.log.level)")
}

// load reads the configuration and puts the flags over it.
func (f *flags) load() (config.Config, error) {
	c, err := config.Load(f.file)
	if err != nil {
		return c, err
	}
	if err := f.override(&c); err != nil {
		return c, err
	}
	return c, c.Check()
}

func (f *flags) override(c *config.Config) error {
	set(&c.Reach, model.Reach(f.reach))
	set(&c.L4.Dataplane, f.dataplane)
	set(&c.Edge.Log.Format, f.logFormat)
	set(&c.Edge.Log.Level, f.logLevel)
	set(&c.Manifests, f.manifests)
	set(&c.Edge.Admin.Socket, f.socket)
	if f.kubeconfig != "" || f.context != "" {
		if len(c.Clusters) == 0 {
			c.Clusters = []config.Cluster{{}}
		}
		set(&c.Clusters[0].Kubeconfig, f.kubeconfig)
		set(&c.Clusters[0].Context, f.context)
	}
	var err error
	if f.admin != "" {
		if c.Edge.Admin.Address, err = netip.ParseAddrPort(f.admin); err != nil {
			err = fmt.Errorf("--admin-address: %q is not an address and port such as 127.0.0.1:9440", f.admin)
		}
	}
	return errors.Join(setPort(&c.L7.HTTPPort, "--http-port", f.httpPort), setPort(&c.L7.HTTPSPort, "--https-port", f.httpsPort), err)
}

// setPort is set for a port; "0" is given, too.
func setPort(to *uint16, name, flag string) error {
	if flag == "" {
		return nil
	}
	port, err := strconv.ParseUint(flag, 10, 16)
	if err != nil {
		return fmt.Errorf("%s: %q is not a number from 0 to 65535", name, flag)
	}
	*to = uint16(port)
	return nil
}

// set overrides where a flag was given.
func set[T comparable](to *T, flag T) {
	var none T
	if flag != none {
		*to = flag
	}
}

// newLogger logs to w as the configuration says, which has been checked.
func newLogger(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic("BUG: unchecked log level: " + err.Error())
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
