package badhttp

import (
	"fmt"
	"log/slog"
	"net"

	"github.com/spf13/cobra"
)

// Command is the program that serves: the image badhttp of the lab.
func Command() *cobra.Command {
	var address string
	s := &Server{}
	cmd := &cobra.Command{
		Use:   "badhttp",
		Short: "Serve broken HTTP, each path in a way of its own; / lists them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			listener, err := net.Listen("tcp", address)
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			return s.Serve(cmd.Context(), listener)
		},
	}
	cmd.Flags().StringVar(&address, "listen", ":8080", "`HOST:PORT` to serve on")
	cmd.Flags().StringVar(&s.Only, "only", "", "`PATH` whose behaviour all requests get")
	return cmd
}
