package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  sallyport version\n  sallyport version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := build{version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return out.write(cmd.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "sallyport %s %s %s\n", v.Version, v.Go, v.Platform)
				return err
			})
		},
	}
	out.add(cmd)
	return cmd
}

// A build is what "sallyport version" prints.
type build struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// version is what the Go toolchain recorded of the checkout: a tag, or a pseudo-version of its commit.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// buildInfo exposes the version as a metric that is always 1, as is the custom.
func buildInfo(r prometheus.Registerer) {
	promauto.With(r).NewGauge(prometheus.GaugeOpts{
		Name: "sallyport_build_info", Help: "The running version; the value is always 1.",
		ConstLabels: prometheus.Labels{"version": version(), "goversion": runtime.Version()},
	}).Set(1)
}
