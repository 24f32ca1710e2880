package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/admin"
	"sallyport/cmd/sallyport/config"
)

// A runningEdge is the one on this machine that a command asks.
type runningEdge struct {
	file   string // configuration
	socket string // empty: that of the configuration
}

func (r *runningEdge) add(cmd *cobra.Command) {
	addConfig(cmd, &r.file)
	cmd.Flags().StringVar(&r.socket, "socket", "", "admin `socket` of the running edge (default: edge.admin.socket of the configuration)")
}

// get asks for a view, see admin.Client. A default file that is wrong is for check to complain of: the edge runs all the same.
func (r *runningEdge) get(ctx context.Context, view string, query url.Values, v any) error {
	socket := r.socket
	if socket == "" {
		c, err := config.Load(r.file)
		if err != nil && r.file != "" {
			return err
		}
		socket = cmp.Or(c.Edge.Admin.Socket, config.DefaultSocket)
	}
	return admin.Client{Socket: socket}.Get(ctx, view, query, v)
}

func newStatus() *cobra.Command {
	var running runningEdge
	var out output
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the edge that runs on this machine",
		Long: `Show what the running edge serves: whether the API server answers, how old the snapshot is and how much is in it, whether it is
applied, which edge writes to the cluster, and the problems.`,
		Example: `  sallyport status
  sallyport status --watch
  sallyport status -o json | jq .problems`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := func(ctx context.Context) error {
				var s admin.Status
				if err := running.get(ctx, "/v1/status", nil, &s); err != nil {
					return err
				}
				return out.write(cmd.OutOrStdout(), s, s.WriteText)
			}
			if !watch {
				return show(cmd.Context())
			}
			return follow(cmd, out.form, show)
		},
	}
	running.add(cmd)
	out.add(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it anew every 2 seconds, until Ctrl-C")
	return cmd
}

// clearScreen is what clear(1) prints (ECMA-48: cursor home, erase in page).
const clearScreen = "\x1b[H\x1b[2J"

// betweenForms is what parts one showing from the next: for people a new screen, for programs what makes a stream of documents.
var betweenForms = map[string]string{"text": clearScreen, "yaml": "---\n", "json": ""}

// follow shows again and again until a signal comes; an edge that does not answer may be starting.
func follow(cmd *cobra.Command, form string, show func(context.Context) error) error {
	ctx := cmd.Context()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		fmt.Fprint(cmd.OutOrStdout(), betweenForms[form])
		if err := show(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintln(cmd.ErrOrStderr(), err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
