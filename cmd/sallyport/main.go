// Command sallyport is the edge of a Kubernetes cluster: it watches Services and Ingresses and lets the outside world
// in, by NAT for NodePorts and LoadBalancer addresses and by an HTTP proxy for hosts and paths.
//
// The way of the data is in pipeline.go, the parts of a running edge in edge.go.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	os.Exit(code)
}

// run is main without the process: it returns the exit code, 1 for every error.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "sallyport: %v\n", err)
		return 1
	}
	return 0
}
