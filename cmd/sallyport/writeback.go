package main

import (
	"net"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"sallyport/cmd/sallyport/config"
	"sallyport/watcher/model"
	"sallyport/watcher/status"
)

// newStatusLane makes the writer of a cluster's status. It is remote and slow, so it has a lane of its own.
func (e *edge) newStatusLane(i input, problems *problemBook, results *prometheus.CounterVec) (*lane, error) {
	client, err := i.api.Client()
	if err != nil {
		return nil, err
	}
	var l *lane
	w, err := status.New(status.Options{
		Cluster:          i.name,
		Config:           client,
		Identity:         e.config.Edge.Name,
		LeaseNamespace:   e.config.Status.LeaseNamespace,
		IngressAddresses: func() []netip.Addr { return ingressAddresses(e.config) },
		UID:              func(r model.ObjectRef) string { return i.api.UID(r.Kind, r.Namespace, r.Name) },
		Changed:          func() { l.wake() },
		Log:              e.log.With("part", "status"),
		Metrics:          e.registry,
	})
	if err != nil {
		return nil, err
	}
	e.writer = w
	problems.changed = w.Report
	l = newLane("status", w, problems, results, e.log)
	return l, nil
}

// ingressAddresses are those that the status of Ingresses shows: configured ones, or those of L7 that clients can connect to.
func ingressAddresses(c config.Config) []netip.Addr {
	if len(c.Status.IngressAddresses) > 0 || !c.L7.Enabled {
		return c.Status.IngressAddresses
	}
	var out []netip.Addr
	for _, text := range c.L7.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.IsUnspecified() { // "edge", or the same as an address: every one
			a = primaryAddress("udp4")
		}
		if a.IsValid() && !a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}

// primaryAddress is the address that this machine's default route of a family leaves by (network udp4 or udp6); the zero Addr
// without one. No packet is sent.
func primaryAddress(network string) netip.Addr {
	// Of the networks for documentation (RFC 5737, RFC 3849), so that no route but the default one leads there.
	elsewhere := map[string]string{"udp4": "192.0.2.1:9", "udp6": "[2001:db8::1]:9"}
	c, err := net.Dial(network, elsewhere[network])
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().WithZone("")
}
