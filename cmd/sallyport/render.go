package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/rules"
	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

func newRender() *cobra.Command {
	var f flags
	var files []string
	var out output
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
			if len(files) == 0 { // as of an unset variable: -f "$FILE"
				return errors.New("--filename: empty: give a manifest file or folder")
			}
			in, err := objects.Read(files...)
			if err != nil {
				return err
			}
			r := renderOf(in, c)
			if err := out.write(cmd.OutOrStdout(), r, r.writeText); err != nil {
				return err
			}
			return report(cmd.ErrOrStderr(), in)
		},
	}
	f.add(cmd)
	out.add(cmd)
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

// A rendering is what "sallyport render" prints.
type rendering struct {
	Snapshot *model.Snapshot `json:"snapshot"`
	Rules    string          `json:"rules,omitempty"` // as the tools that load them read them; empty in user space
}

func renderOf(in objects.Manifest, c config.Config) rendering {
	s := assemble(objects.Objects{in.Objects}, translateOptions(c, func(model.ObjectRef) bool { return true }), c.Pools)
	if c.L4.Dataplane == config.DataplaneUserspace {
		return rendering{Snapshot: s}
	}
	o := rulesOptions(c)
	o.HashSeed = 0 // a secret: what is printed goes into tickets
	var text strings.Builder
	if err := rules.Print(&text, s, o); err != nil {
		panic("BUG: a strings.Builder failed: " + err.Error())
	}
	return rendering{s, text.String()}
}

// writeText prints the parts under headings that are comments to iptables-restore.
func (r rendering) writeText(w io.Writer) error {
	fmt.Fprintln(w, "# snapshot")
	if err := r.Snapshot.WriteText(w); err != nil || r.Rules == "" {
		return err
	}
	_, err := fmt.Fprintf(w, "\n# rules\n%s", r.Rules)
	return err
}
