package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"sallyport/bench/l4/api"
)

// plain is a port that no Service has.
func plain(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, plainPort) }

// lastNodePort is the node port of the last Service that has one.
func lastNodePort(r *runner) netip.AddrPort {
	return netip.AddrPortFrom(r.edge.Addr, api.NodePort(min(r.services, api.NodePorts)-1))
}

// openFlows establishes n connections to a Service.
func (r *runner) openFlows(n int) (flows []socket, err error) {
	err = r.site.client.Do(func() error {
		for i := range n {
			s, _, err := dial(r.edge.source, vip(0), patience)
			if err != nil {
				return fmt.Errorf("open flow %d through %s: %w", i, r.name(), err)
			}
			flows = append(flows, s)
			if _, err := s.read(); err != nil {
				return fmt.Errorf("read from flow %d through %s: %w", i, r.name(), err)
			}
		}
		return nil
	})
	return flows, err
}

// killed kills the program while connections are open, starts it again, and counts the connections that went on to work
// without it and with its successor.
func (b *bench) killed(ctx context.Context, result *result) error {
	r := b.runners[result.contender]
	flows, err := r.openFlows(b.flows)
	defer func() {
		for _, f := range flows {
			f.close()
		}
	}()
	if err != nil {
		return err
	}
	r.process.kill()
	alive := make([]bool, len(flows))
	for i, f := range flows {
		alive[i] = f.echo() == nil
	}
	if r.services <= restartMost {
		if err := b.restart(ctx, r); err != nil {
			return err
		}
	}
	for i, f := range flows {
		if alive[i] && f.echo() == nil {
			result.survived++
		}
	}
	b.log.Info("killed", "contender", r.name(), "services", r.services, "flows", len(flows), "survived", result.survived)
	return nil
}

// restartMost is the number of Services up to which a killed program is started again: beyond, kube-proxy takes minutes.
const restartMost = 1000

// restart starts the killed program again and waits until it follows the cluster.
func (b *bench) restart(ctx context.Context, r *runner) error {
	limit, cancel := context.WithTimeout(ctx, programWithin)
	defer cancel()
	if err := r.start(); err != nil {
		return err
	}
	_, err := r.changes(limit, 1, time.Minute, b.changeGap)
	return err
}
