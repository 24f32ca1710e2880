// Command lab brings up a real Kubernetes cluster with its surroundings on one machine, without containers: control
// plane, nodes, edges outside the cluster and a client, each in a network namespace of its own.
//
//	go run ./bench/lab up
//	go run ./bench/lab exec client -- curl http://10.200.0.21:30001
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"sallyport/bench/lab/agent"
	"sallyport/bench/lab/badhttp"
	"sallyport/bench/lab/sctp"
	"sallyport/bench/lab/wsecho"
)

func main() {
	// The agent runs this program again inside a container's namespaces, before anything else may open a file.
	if len(os.Args) > 1 && os.Args[1] == agent.PodInitCommand {
		fmt.Fprintln(os.Stderr, agent.PodInit(os.Args[2:]))
		os.Exit(128)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	command := newCommand()
	if image := imageCommand(filepath.Base(os.Args[0])); image != nil {
		command = image
	}
	if err := command.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, command.Name()+":", err)
		os.Exit(1)
	}
}

// imageCommand returns the program of one of cluster.OwnImages, which this program plays when it is run under that name.
func imageCommand(name string) *cobra.Command {
	switch name {
	case "badhttp":
		return badhttp.Command()
	case "sctp":
		return sctp.Command()
	case "websocket":
		return wsecho.Command()
	}
	return nil
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "A real Kubernetes cluster, its edges and a client on this machine, without containers",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(upCommand(), execCommand(), stopCommand(), startCommand(), cutCommand(), mendCommand(),
		downCommand(), listCommand(), buildCommand(), agentCommand())
	return root
}
