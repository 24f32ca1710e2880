package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sallyport/bench/lab/agent"
	"sallyport/bench/lab/build"
	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

// defaultName is the lab that commands mean when none is named.
const defaultName = "default"

func nameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", defaultName, "name of the lab")
}

func upCommand() *cobra.Command {
	var o cluster.Options
	var images []string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab and keep it until interrupted, then remove it",
		Example: `  lab up
  lab up --name two --nodes 3 --edges 1 --image shop=/usr/local/bin/shop`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Images, err = imageTable(images); err != nil {
				return err
			}
			if o.Program, err = os.Executable(); err != nil {
				return err
			}
			o.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return up(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	nameFlag(cmd, &o.Name)
	cmd.Flags().IntVar(&o.Nodes, "nodes", 2, "number of nodes")
	cmd.Flags().IntVar(&o.Edges, "edges", 2, "number of edges")
	cmd.Flags().DurationVar(&o.NodeMonitorGrace, "node-monitor-grace-period", 0, "how long a node may be silent before it is NotReady (default 8s)")
	cmd.Flags().DurationVar(&o.EvictAfter, "evict-after", 0, "how long pods stay bound to a node that is gone (default 20s)")
	cmd.Flags().StringArrayVar(&images, "image", nil, "`NAME=BINARY`: program that plays the image NAME in any registry and of any tag (agnhost, echo-basic, badhttp, sctp and websocket are built in)")
	return cmd
}

// imageTable reads NAME=BINARY pairs; binaries may be named relative to the working directory.
func imageTable(pairs []string) (map[string]string, error) {
	table := map[string]string{}
	for _, pair := range pairs {
		name, binary, ok := strings.Cut(pair, "=")
		if !ok || name == "" || binary == "" {
			return nil, fmt.Errorf("--image %q: want NAME=BINARY", pair)
		}
		if bare := agent.ImageName(name); bare != name {
			return nil, fmt.Errorf("--image %q: the name is matched without registry and tag: want %s=%s", pair, bare, binary)
		}
		path, err := filepath.Abs(binary)
		if err != nil {
			return nil, fmt.Errorf("--image %q: %w", pair, err)
		}
		table[name] = path
	}
	return table, nil
}

func up(ctx context.Context, o cluster.Options, out io.Writer) error {
	c, err := cluster.Start(ctx, o)
	if err != nil {
		return err
	}
	err = describe(out, c.State())
	fmt.Fprintf(out, "VIPs are free in %v and %v. Stop the lab with Ctrl-C or: lab down --name %s\n", c.Pool(), c.Pool6(), c.Name())
	select {
	case <-ctx.Done():
	case <-c.Failed():
		err = errors.Join(err, c.Err())
	}
	return errors.Join(err, c.Stop())
}

func describe(out io.Writer, s *cluster.State) error {
	fmt.Fprintf(out, "KUBECONFIG=%s\n", s.Kubeconfig)
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "HOST\tADDRESS\tIPV6\tIN THE NODES' NETWORK")
	for _, h := range s.Hosts {
		nodes := "-"
		if h.NodesAddr.IsValid() {
			nodes = h.NodesAddr.String()
		}
		fmt.Fprintf(table, "%s\t%v\t%v\t%s\n", h.Name, h.Addr, h.Addr6, nodes)
	}
	return table.Flush()
}

func execCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "exec HOST -- COMMAND [ARG...]",
		Short: "Run a command on a host of a lab and exit as it does",
		Example: `  lab exec client -- curl http://10.200.0.21:30001
  lab exec edge-1 -- iptables-save
  lab exec control -- kubectl get nodes`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			host, err := findHost(name, args[0])
			if err != nil {
				return err
			}
			command := args[1:]
			if command[0] == "--" && len(command) > 1 { // the parser leaves it where it follows HOST
				command = command[1:]
			}
			return host.Exec(command[0], command[1:]...)
		},
	}
	nameFlag(cmd, &name)
	cmd.Flags().SetInterspersed(false) // flags after HOST are the command's
	return cmd
}

// findHost finds a host of a lab.
func findHost(lab, name string) (*network.Host, error) {
	s, err := cluster.Load(lab)
	if err != nil {
		return nil, err
	}
	host := s.Host(name)
	if host == nil {
		return nil, fmt.Errorf("lab %s has no host %q, it has %s", lab, name, hostNames(s))
	}
	return host, nil
}

func hostNames(s *cluster.State) string {
	var names []string
	for _, h := range s.Hosts {
		names = append(names, h.Name)
	}
	return strings.Join(names, ", ")
}

func downCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, also one whose up has crashed",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return cluster.Down(name) },
	}
	nameFlag(cmd, &name)
	return cmd
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			labs, err := cluster.List()
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(table, "LAB\tUP\tKUBECONFIG")
			for _, s := range labs {
				up := fmt.Sprintf("process %d", s.Owner)
				if s.Owner == 0 {
					up = "no: remove it with lab down --name " + s.Name
				}
				fmt.Fprintf(table, "%s\t%s\t%s\n", s.Name, up, s.Kubeconfig)
			}
			return table.Flush()
		},
	}
}

func buildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build the programs of the cluster into the user's cache folder and print where they are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			programs, err := build.All(cmd.Context(), slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
			for _, name := range slices.Sorted(maps.Keys(programs)) {
				fmt.Fprintln(cmd.OutOrStdout(), programs[name])
			}
			return err
		},
	}
}

// agentCommand is what up runs for each node.
func agentCommand() *cobra.Command {
	var c agent.Config
	var cert, key, clientCA string
	var ips, images []string
	cmd := &cobra.Command{
		Use:    "agent",
		Short:  "Play the kubelet of one node",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.NodeIPs, err = nodeIPs(ips); err != nil {
				return err
			}
			if c.Images, err = imageTable(images); err != nil {
				return err
			}
			if c.Kubelet, err = agent.KubeletTLS(cert, key, clientCA); err != nil {
				return err
			}
			c.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			return agent.Run(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Node, "node", "", "name of the Node object")
	f.StringSliceVar(&ips, "node-ip", nil, "the node's InternalIPs, one of each family, the primary one first")
	f.StringVar(&c.NetNS, "netns", "", "name of the node's network namespace")
	f.StringVar(&c.PodNetNSPrefix, "pod-netns-prefix", "", "what the names of the pods' network namespaces begin with")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "path of the kubeconfig")
	f.StringVar(&cert, "tls-cert-file", "", "path of the certificate with which the kubelet's API is served")
	f.StringVar(&key, "tls-private-key-file", "", "path of its key")
	f.StringVar(&clientCA, "client-ca-file", "", "path of the certificate authority of the kubelet's clients")
	f.StringVar(&c.Dir, "dir", "", "folder for logs and files of pods")
	f.StringArrayVar(&images, "image", nil, "NAME=BINARY: program that plays an image")
	return cmd
}

// nodeIPs reads the addresses of a node.
func nodeIPs(list []string) ([]netip.Addr, error) {
	if len(list) == 0 {
		return nil, errors.New("--node-ip is missing")
	}
	ips := make([]netip.Addr, len(list))
	for i, text := range list {
		var err error
		if ips[i], err = netip.ParseAddr(text); err != nil {
			return nil, fmt.Errorf("--node-ip: %w", err)
		}
	}
	return ips, nil
}
