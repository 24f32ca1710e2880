package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"sallyport/bench/l4/api"
	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

// Ports on which the node and the edges answer for themselves: traffic that no Service has to do with.
const plainPort = 9000

// firstSource is the last byte of the client's address towards the first edge. Each edge has one, by which the client
// chooses its way: so all edges can serve the same addresses at the same time.
const firstSource = 100

// apiPort is where the first API server listens on control.
const apiPort = 7000

// A site is the network that the contenders stand in, each on an edge of its own.
type site struct {
	network      *network.Network
	client, node *network.Host
	edges        []*edgeHost
	members      []*edgeHost // edges that are nodes of the cluster, too: kube-proxy runs on no other machine
	listeners    []net.Listener
	ports        int // API servers so far
}

// An edgeHost is a machine between the client and the node.
type edgeHost struct {
	*network.Host
	source netip.Addr // what the client connects from to go through this edge
}

// newSite builds the network with that many edges. On error nothing of it is left.
func newSite(name string, edges int, dir string) (_ *site, err error) {
	if err := cluster.Down(name); err != nil { // what a run that was killed has left
		return nil, err
	}
	n, err := network.Create(network.Options{Lab: name, Nodes: 1, Edges: edges, Dir: dir})
	if err != nil {
		return nil, err
	}
	s := &site{network: n, client: n.Host("client"), node: n.Host(api.NodeName)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for i := range edges {
		e := &edgeHost{Host: n.Host(fmt.Sprintf("edge-%d", i+1))}
		s.edges = append(s.edges, e)
		if err := s.join(e, i); err != nil {
			return nil, err
		}
	}
	return s, s.serveNode()
}

// join gives the client a way through the edge and the node a way back, and has the edge answer for itself.
func (s *site) join(e *edgeHost, i int) error {
	a := s.client.Addr.As4()
	a[3] = byte(firstSource + i)
	e.source = netip.AddrFrom4(a)
	table := fmt.Sprint(1000 + i)
	return errors.Join(
		run(s.client, "ip", "address", "add", e.source.String()+"/32", "dev", network.ClientsLink),
		run(s.client, "ip", "rule", "add", "from", e.source.String(), "lookup", table),
		run(s.client, "ip", "route", "add", "default", "via", e.Addr.String(), "table", table),
		run(s.node, "ip", "route", "add", e.source.String()+"/32", "via", e.NodesAddr.String()),
		s.answer(e.Host, plainPort),
	)
}

// serveNode makes the node answer at every pod's address.
func (s *site) serveNode() error {
	return errors.Join(
		run(s.node, "ip", "route", "add", "local", api.Pods.String(), "dev", "lo"),
		s.answer(s.node, api.EndpointPort),
		s.answer(s.node, plainPort),
	)
}

// answer accepts connections on all IPv4 addresses of the host until the site is closed.
func (s *site) answer(h *network.Host, port int) error {
	return h.Do(func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		if err != nil {
			return fmt.Errorf("listen on %s: %w", h.Name, err)
		}
		s.listeners = append(s.listeners, l)
		go greet(l)
		return nil
	})
}

// serve serves an API server on control, and returns its URL.
func (s *site) serve(port int, start func(net.Listener)) (url string, err error) {
	at := netip.AddrPortFrom(s.network.API, uint16(port))
	err = s.network.Host("control").Do(func() error {
		l, err := net.Listen("tcp4", at.String())
		if err != nil {
			return fmt.Errorf("serve the API: %w", err)
		}
		s.listeners = append(s.listeners, l)
		start(l)
		return nil
	})
	return "http://" + at.String(), err
}

// close removes all processes and namespaces of the site.
func (s *site) close() error {
	for _, l := range s.listeners {
		l.Close()
	}
	return cluster.Down(s.client.Lab)
}

// run runs a command on a host to its end.
func run(h *network.Host, name string, args ...string) error {
	_, err := output(h, "", name, args...)
	return err
}

// output runs a command on a host and returns what it prints.
func output(h *network.Host, stdin, name string, args ...string) (string, error) {
	cmd := h.Command(context.Background(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("on %s: %s %s: %w", h.Name, name, strings.Join(args, " "), err)
	}
	return string(out), nil
}
