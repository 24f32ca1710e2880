package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/admin"
	"sallyport/cmd/sallyport/config"
	"sallyport/rules"
)

func newCleanup() *cobra.Command {
	var file string
	var out output
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every rule, route, link and address of Sallyport from this machine",
		Long: `Remove the chains named SALLY-* and the jumps to them from both iptables backends and families, the sets of these names, the nftables
tables "sallyport", the routes to pods that Sallyport made, and the link sally0 with its VIPs. What others made is not touched. Stop "sallyport run" first.`,
		Example: "  sallyport cleanup",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(file)
			if err != nil { // it must not be in the way of removing what it made
				fmt.Fprintln(cmd.ErrOrStderr(), "sallyport: going on with the default configuration:", err)
				c = config.Default()
			}
			warnOfRunning(cmd, runningEdge{socket: c.Edge.Admin.Socket})
			o := rulesOptions(c)
			o.Log = newLogger(cmd.ErrOrStderr(), c.Edge.Log)
			removed, err := rules.Cleanup(cmd.Context(), o)
			list := map[string][]string{"removed": append([]string{}, removed...)} // in JSON a list, also of nothing
			return errors.Join(err, out.write(cmd.OutOrStdout(), list, func(w io.Writer) error {
				for _, what := range removed {
					fmt.Fprintln(w, "removed", what)
				}
				if err == nil && len(removed) == 0 {
					fmt.Fprintln(w, "nothing to remove")
				}
				return nil
			}))
		},
	}
	addConfig(cmd, &file)
	out.add(cmd)
	return cmd
}

// warnOfRunning says that an edge which runs makes a cleanup pointless.
func warnOfRunning(cmd *cobra.Command, running runningEdge) {
	var s admin.Status
	if err := running.get(cmd.Context(), "/v1/status", nil, &s); err == nil && s.Dataplane != config.DataplaneUserspace {
		fmt.Fprintf(cmd.ErrOrStderr(), "sallyport: edge %s runs and writes everything anew: stop it, then clean up again\n", s.Edge)
	}
}
