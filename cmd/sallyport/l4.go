package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"

	"sallyport/cmd/sallyport/config"
	"sallyport/gateway/stream"
	"sallyport/rules"
	"sallyport/rules/plan"
	"sallyport/watcher"
)

// newL4 makes the reconciler of the configured dataplane.
func (e *edge) newL4(inputs []input, trigger *watcher.Trigger) (step, error) {
	if e.config.L4.Dataplane == config.DataplaneUserspace {
		p := stream.New(stream.Options{NodePortAddresses: hosts(nodePortAddresses(e.config.L4)),
			SourceRangesOnNodePorts: e.config.L4.SourceRangesOnNodePorts, HashSeed: e.config.L4.HashSeed,
			Log: e.log.With("part", "stream"), Metrics: e.registry})
		e.closeL4 = p.Close
		return step{"stream", p}, nil
	}
	o := rulesOptions(e.config)
	o.Log, o.Metrics, o.APIServers = e.log, e.registry, apiServers(inputs)
	k, err := rules.NewKernel(o)
	if err != nil {
		return step{}, err
	}
	e.closeL4 = k.Close
	e.watchL4 = func(ctx context.Context) error { return k.Watch(ctx, trigger.Mark) }
	return step{"rules", k}, nil
}

// leaveKernel removes what a run with a dataplane of the kernel has left: its rules would take connections before user space
// sees them. Who may not change the kernel's rules cannot have made them either.
func leaveKernel(ctx context.Context, c config.Config, log *slog.Logger) {
	o := rulesOptions(c)
	o.Log = log
	removed, err := rules.Cleanup(ctx, o)
	if len(removed) > 0 {
		log.Info("left by an earlier run with another dataplane, and removed", "removed", removed)
	}
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		log.Warn("what an earlier run with another dataplane may have left is not removed", "err", err)
	}
}

// rulesOptions is the part of the configuration that rules are rendered by.
func rulesOptions(c config.Config) rules.Options {
	return rules.Options{
		Options: plan.Options{
			NodePortAddresses:       c.L4.NodePortAddresses,
			SourceRangesOnNodePorts: c.L4.SourceRangesOnNodePorts,
			SNAT:                    plan.SNAT(c.L4.SNAT),
			ReturnPath:              plan.ReturnPath(c.L4.ReturnPath),
			Groups:                  groups(c),
			HashSeed:                c.L4.HashSeed,
		},
		Dataplane:    rules.Dataplane(c.L4.Dataplane),
		Backend:      rules.Backend(c.L4.IptablesBackend),
		Reach:        c.Reach,
		ConntrackMax: c.L4.ConntrackMax,
		L7Ports:      l7Ports(c),
	}
}

// groups are those of the configuration as plans have them.
func groups(c config.Config) (out []plan.Group) {
	for _, g := range c.Groups {
		p := plan.Group{Name: g.Name, NodesGateway: g.NodesGateway}
		for _, r := range g.SNAT {
			p.SNATAddresses = append(p.SNATAddresses, plan.Range{First: r.First, Last: r.Last})
		}
		out = append(out, p)
	}
	return out
}

// nodePortAddresses are where NodePorts are served: as configured, or at the primary address of each family.
func nodePortAddresses(c config.L4) []netip.Prefix {
	if len(c.NodePortAddresses) > 0 {
		return c.NodePortAddresses
	}
	var out []netip.Prefix
	for _, network := range []string{"udp4", "udp6"} {
		if a := primaryAddress(network); a.IsValid() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// l7Ports are the TCP ports that HTTP and HTTPS are served on.
func l7Ports(c config.Config) (ports []uint16) {
	if !c.L7.Enabled {
		return nil
	}
	ports = append(ports, c.L7.HTTPPort)
	if c.L7.HTTPSPort != 0 {
		ports = append(ports, c.L7.HTTPSPort)
	}
	return ports
}

// apiServers are the addresses of the clusters' API servers, as far as their kubeconfigs name addresses: a name may come to
// lead elsewhere, and those behind it are known from the Service "kubernetes".
func apiServers(inputs []input) (list []netip.Addr) {
	for _, i := range inputs {
		if u, err := url.Parse(i.about); err == nil {
			if a, err := netip.ParseAddr(u.Hostname()); err == nil {
				list = append(list, a.Unmap())
			}
		}
	}
	return list
}

// hosts are the addresses of prefixes that are single addresses, as user space can only listen on those, or that are all.
func hosts(prefixes []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range prefixes {
		out = append(out, p.Addr())
	}
	return out
}

// ownAddresses are the machine's, as they are at the start, without VIPs: those may be many, and lead back to endpoints.
// Loopback is refused anyway.
func ownAddresses(log *slog.Logger) []netip.Addr {
	var out []netip.Addr
	links, err := net.Interfaces()
	for _, link := range links {
		if link.Name == rules.DefaultLink || link.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, failed := link.Addrs()
		err = errors.Join(err, failed)
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Addr().Unmap())
			}
		}
	}
	if err != nil {
		log.Warn("not all own addresses are known, so endpoints are not checked against them", "err", err)
	}
	return out
}
