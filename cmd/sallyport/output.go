package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// An output is the form in which a command prints: for people, or as JSON or YAML for programs.
type output struct{ form string }

// forms are the values of -o.
var forms = []string{"text", "json", "yaml"}

// add declares -o.
func (o *output) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.form, "output", "o", "text", "`form` of the output: text, json or yaml")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains(forms, o.form) {
			return fmt.Errorf("--output: %q is not known: use text, json or yaml", o.form)
		}
		return nil
	}
}

// write prints v, or in text what the function writes.
func (o *output) write(w io.Writer, v any, text func(io.Writer) error) error {
	if o.form == "text" {
		return text(w)
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err == nil && o.form == "yaml" {
		data, err = yaml.JSONToYAML(data)
	}
	if err != nil {
		return fmt.Errorf("print as %s: %w", o.form, err)
	}
	if o.form == "json" {
		data = append(data, '\n')
	}
	_, err = w.Write(data)
	return err
}
