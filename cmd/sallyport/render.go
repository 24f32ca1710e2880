package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/rules"
	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

func newRender() *cobra.Command {
	var f flags
	var files []string
	cmd := &cobra.Command{
		Use:   "render -f FILE_OR_FOLDER...",
		Short: "Print what manifests would become, without touching the kernel",
		Long: `Print the snapshot, the problems and the iptables rules that the manifests would become on this edge. Nothing is
changed and no cluster is asked. With reach auto every node's pods count as reached directly.`,
		Example: `  sallyport render -f manifests/
  sallyport render -f service.yaml -f nodes.yaml --reach nodes
  kubectl get svc,endpointslices,nodes,ingresses,ingressclasses -A -o yaml > all.yaml && sallyport render -f all.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			in, err := objects.Read(files...)
			if err != nil {
				return err
			}
			s := build(objects.Objects{in.Objects}, translateOptions(c, func(model.ObjectRef) bool { return true }), c.Pools)
			if err := writeRender(cmd.OutOrStdout(), s, c); err != nil {
				return err
			}
			return report(cmd.ErrOrStderr(), in)
		},
	}
	f.add(cmd)
	cmd.Flags().StringSliceVarP(&files, "filename", "f", nil, "manifest `file` or folder, may be repeated")
	if err := cmd.MarkFlagRequired("filename"); err != nil {
		panic("BUG: " + err.Error())
	}
	return cmd
}

// report says what of the manifests was not used. Objects that cannot be read are the error.
func report(w io.Writer, m objects.Manifest) error {
	for _, s := range m.Skipped {
		fmt.Fprintf(w, "%s: skipped %s: not a kind that Sallyport reads\n", s.Position, s.Object)
	}
	for _, e := range m.Warnings {
		fmt.Fprintln(w, e)
	}
	var errs []error
	for _, e := range m.Errors {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// writeRender prints the three parts under headings that are comments to iptables-restore.
func writeRender(w io.Writer, s *model.Snapshot, c config.Config) error {
	fmt.Fprintln(w, "# snapshot")
	if err := s.WriteText(w); err != nil {
		return err
	}
	if c.L4.Dataplane != config.DataplaneIptables {
		return nil
	}
	fmt.Fprintln(w, "\n# rules")
	o := rulesOptions(c)
	o.HashSeed = 0 // a secret: what is printed goes into tickets
	_, err := rules.Render(s, o).WriteTo(w)
	return err
}
