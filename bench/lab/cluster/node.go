package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sallyport/bench/lab/network"
)

// emptyTables is what iptables-restore makes the kernel's tables empty with, as they are after a boot.
const emptyTables = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n"

// StopNode cuts a node's power: its pods, agent and kube-proxy die, its cable is dead, its rules and connections are lost.
// The control plane notices after Options.NodeMonitorGrace, and evicts its pods Options.EvictAfter later.
func (c *Cluster) StopNode(name string) error {
	h, err := c.node(name)
	if err != nil {
		return err
	}
	err = errors.Join(c.StopProgram("agent@"+name), c.StopProgram("kube-proxy@"+name), h.CutCable(network.NodesLink, network.NoCarrier))
	if err != nil {
		return fmt.Errorf("stop node %s: %w", name, err)
	}
	for _, family := range []string{"iptables-restore", "ip6tables-restore"} {
		cmd := h.Command(context.Background(), family, "--wait")
		cmd.Stdin = strings.NewReader(emptyTables)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("stop node %s: empty its tables: %w: %s", name, err, out)
		}
	}
	if out, err := h.Command(context.Background(), "conntrack", "-F").CombinedOutput(); err != nil {
		return fmt.Errorf("stop node %s: forget its connections: %w: %s", name, err, out)
	}
	return nil
}

// StartNode starts a node that StopNode stopped, and returns when it is Ready and its kube-proxy has programmed its
// rules. A node that runs stays as it is.
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	h, err := c.node(name)
	if err != nil {
		return err
	}
	err = errors.Join(h.MendCable(network.NodesLink), c.StartProgram("agent@"+name), c.StartProgram("kube-proxy@"+name))
	if err != nil {
		return fmt.Errorf("start node %s: %w", name, err)
	}
	return within(ctx, startWithin, func(ctx context.Context) error {
		return inParallel(
			func() error { return c.waitNode(ctx, h) },
			func() error { return c.waitKubeProxy(ctx, h) },
		)
	})
}

// node returns the host of that name if it is a node.
func (c *Cluster) node(name string) (*Host, error) {
	nodes := c.nodes()
	i := slices.IndexFunc(nodes, func(h *Host) bool { return h.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("lab %s has no node %q", c.name, name)
	}
	return nodes[i], nil
}
