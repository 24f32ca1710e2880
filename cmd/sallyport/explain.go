package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/sallyport/config"
	"sallyport/cmd/sallyport/explain"
)

func newExplain() *cobra.Command {
	var running runningEdge
	var out output
	cmd := &cobra.Command{
		Use:   "explain TARGET",
		Short: "Say where the running edge sends a request, and why",
		Long: `Ask the edge that runs on this machine where a request or connection leads: which listener, route, Service and endpoints take
it and by which reach, or why none does.`,
		Example: `  sallyport explain http://shop.example.com/cart
  sallyport explain tcp://192.0.2.10:443
  sallyport explain tcp://192.0.2.10:443?from=198.51.100.7
  sallyport explain udp://198.51.100.1:30053
  sallyport explain service/shop/web
  sallyport explain ingress/shop/web -o json`,
		Args: oneTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			var e explain.Explanation
			if err := running.get(cmd.Context(), "/v1/explain", url.Values{"target": args}, &e); err != nil {
				return err
			}
			return out.write(cmd.OutOrStdout(), e, e.WriteText)
		},
	}
	running.add(cmd)
	out.add(cmd)
	return cmd
}

func oneTarget(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d targets are given: give one, such as http://shop.example.com/cart, tcp://192.0.2.10:443 or service/shop/web", len(args))
	}
	return nil
}

// Explain implements admin.Views.
func (e *edge) Explain(target string) (any, error) {
	s := e.Snapshot()
	if s == nil {
		return nil, errors.New("there is no snapshot yet: sallyport status says what the edge waits for")
	}
	return explain.Explain(s, e.explainOptions(), target)
}

func (e *edge) explainOptions() explain.Options {
	c := e.config
	o := explain.Options{
		Problems:          e.pipeline.problems.current(),
		EdgeAddresses:     e.pipeline.options.OwnAddresses,
		NodePortAddresses: nodePortAddresses(c.L4),
		Pools:             c.Pools,
		Dataplane:         c.L4.Dataplane,

		SourceRangesOnNodePorts: c.L4.SourceRangesOnNodePorts,
		Now:                     time.Now(),
	}
	if a := c.Edge.Admin.Address; !a.Addr().IsLoopback() { // on loopback, no connection from outside leads to it
		o.ListenPorts = map[uint16]string{a.Port(): "admin"}
	}
	if c.L7.Enabled {
		o.HTTPPort, o.HTTPSPort = c.L7.HTTPPort, c.L7.HTTPSPort
		o.L7Addresses = l7Addresses(c)
	}
	if c.L4.Dataplane == config.DataplaneUserspace && len(o.EdgeAddresses) == 0 {
		o.EdgeAddresses = slices.DeleteFunc(hosts(c.L4.NodePortAddresses), netip.Addr.IsUnspecified)
	}
	return o
}

// l7Addresses are those that HTTP is served on; none means every address.
func l7Addresses(c config.Config) (list []netip.Addr) {
	for _, text := range c.L7.Addresses {
		if a, err := netip.ParseAddr(text); err == nil && !a.IsUnspecified() {
			list = append(list, a)
		}
	}
	return list
}
