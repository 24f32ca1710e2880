package main

import (
	"github.com/spf13/cobra"

	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

const programsHelp = `A node, such as node-1, or one program: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
kube-proxy@NODE, agent@NODE.`

func stopCommand() *cobra.Command {
	return targetCommand(&cobra.Command{
		Use:   "stop NODE|PROGRAM",
		Short: "Stop a node or a program of a lab that is up, as a power cut would",
		Long:  "Stop a node or a program of a lab that is up, as a power cut would.\n\n" + programsHelp,
		Example: `  lab stop node-2
  lab stop kube-apiserver`,
	}, (*cluster.State).Stop)
}

func startCommand() *cobra.Command {
	return targetCommand(&cobra.Command{
		Use:   "start NODE|PROGRAM",
		Short: "Start what was stopped; for a node, wait until it is ready",
		Long:  "Start what was stopped; for a node, wait until it is ready.\n\n" + programsHelp,
	}, (*cluster.State).Start)
}

// targetCommand makes cmd ask the lab for something about its argument.
func targetCommand(cmd *cobra.Command, ask func(*cluster.State, string) error) *cobra.Command {
	var name string
	cmd.Args = cobra.ExactArgs(1)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		s, err := cluster.Load(name)
		if err != nil {
			return err
		}
		return ask(s, args[0])
	}
	nameFlag(cmd, &name)
	return cmd
}

func cutCommand() *cobra.Command {
	var name string
	var silent bool
	cmd := &cobra.Command{
		Use:   "cut HOST clients|nodes",
		Short: "Cut the cable between a host and one of its networks",
		Example: `  lab cut edge-1 clients            # the link loses its carrier
  lab cut edge-1 nodes --silent     # the link stays up, packets are dropped`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			host, err := findHost(name, args[0])
			if err != nil {
				return err
			}
			fault := network.NoCarrier
			if silent {
				fault = network.Silent
			}
			return host.CutCable(args[1], fault)
		},
	}
	nameFlag(cmd, &name)
	cmd.Flags().BoolVar(&silent, "silent", false, "drop packets and leave the link up")
	return cmd
}

func mendCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "mend HOST clients|nodes",
		Short: "Mend the cable between a host and one of its networks",
		Args:  cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			host, err := findHost(name, args[0])
			if err != nil {
				return err
			}
			return host.MendCable(args[1])
		},
	}
	nameFlag(cmd, &name)
	return cmd
}
