package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sallyport/watcher/model"
)

// A want is a listener that a snapshot asks for, and what it is to do.
type want struct {
	entry
	service       model.ObjectRef
	state         *portState
	destinations  []model.Destination
	affinity      *model.Affinity
	proxyProtocol uint8
}

// An entry is one address that a service port is reached at.
type entry struct {
	address
	ranges  *model.SourceRanges // who may connect there; nil is everyone
	foreign bool                // not an address of this machine
}

// sameAs says whether a listener of o does what w wants.
func (w want) sameAs(o want) bool {
	return w.service == o.service && w.state == o.state && w.proxyProtocol == o.proxyProtocol &&
		slices.Equal(w.destinations, o.destinations) && same(w.affinity, o.affinity) && sameRanges(w.ranges, o.ranges)
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

func sameRanges(a, b *model.SourceRanges) bool {
	return a == b || a != nil && b != nil && slices.Equal(a.Prefixes, b.Prefixes)
}

// A bound is a want that was met.
type bound struct {
	want
	listener
}

// Reconcile opens and closes listeners to match the snapshot: NodePorts on Options.NodePortAddresses, service ports
// on their VIPs and external IPs where those are addresses of this machine, and on their cluster IPs. A service port without
// destinations is not listened on, so that the kernel refuses its clients.
//
// Every port that cannot be listened on is in the error, with its Service and what to do; the others are served, and
// the next Reconcile tries again. TCP connections go on whatever the snapshot says. UDP sessions end when their
// listener or their destination goes.
func (p *Proxy) Reconcile(ctx context.Context, s *model.Snapshot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	wants, errs := p.wants(s)
	p.closeUnwanted(wants)
	unbound := len(errs)
	for _, w := range wants {
		if err := p.ensure(ctx, w); err != nil {
			errs = append(errs, err)
			unbound++
		}
	}
	p.metrics.unbound.Set(float64(unbound))
	return model.Partial(errors.Join(errs...))
}

// wants lists the listeners that s asks for, each address once, and an error for each one that a second Service asks for.
func (p *Proxy) wants(s *model.Snapshot) ([]want, []error) {
	c := claims{owner: make(map[address]model.ObjectRef)}
	p.states.begin()
	for _, svc := range byAge(s.Services) {
		for k := range svc.Ports {
			port := &svc.Ports[k]
			entries := p.entries(svc, port)
			if len(entries) == 0 {
				continue
			}
			state := p.states.port(svc, port)
			for _, e := range entries {
				c.add(want{e, svc.Ref, state, port.Destinations, svc.Affinity, svc.ProxyProtocol})
			}
		}
	}
	return c.wants, c.errs
}

// claims are the wants of one snapshot while they are collected.
type claims struct {
	owner map[address]model.ObjectRef
	wants []want
	errs  []error
}

// add gives the address to the Service, unless an older one has it; who has it keeps it while it has no destinations, too. A
// Service may ask for an address several times over.
func (c *claims) add(w want) {
	first, taken := c.owner[w.address]
	switch {
	case taken && first != w.service:
		c.errs = append(c.errs, fmt.Errorf("stream: %v: %v is taken by %v; give one of them another port", w.service, w.address, first))
	case !taken:
		c.owner[w.address] = w.service
		if len(w.destinations) > 0 {
			c.wants = append(c.wants, w)
		}
	}
}

// byAge returns the Services in the order in which they may claim addresses.
func byAge(services []model.Service) []*model.Service {
	out := make([]*model.Service, len(services))
	for i := range services {
		out[i] = &services[i]
	}
	slices.SortFunc(out, func(a, b *model.Service) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Ref.Compare(b.Ref))
	})
	return out
}

// entries lists where a service port is to be listened on, nowhere if its protocol is not served. An address that is a VIP
// and something else is a VIP, to which more restrictions apply.
func (p *Proxy) entries(svc *model.Service, port *model.ServicePort) []entry {
	if port.Protocol != model.TCP && port.Protocol != model.UDP {
		return nil
	}
	var out []entry
	add := func(addrs []netip.Addr, number uint16, e entry) {
		for _, ip := range addrs {
			e.address = address{port.Protocol, ip, number}
			out = append(out, e)
		}
	}
	add(svc.VIPs, port.Port, entry{ranges: svc.SourceRanges})
	switch {
	case port.NodePort == 0:
	case p.opt.SourceRangesOnNodePorts:
		add(p.opt.NodePortAddresses, port.NodePort, entry{ranges: svc.SourceRanges})
	default:
		add(p.opt.NodePortAddresses, port.NodePort, entry{})
	}
	add(svc.ExternalIPs, port.Port, entry{})
	add(svc.ClusterIPs, port.Port, entry{foreign: true})
	return out
}

// closeUnwanted closes the listeners that wants does not name. It comes before any opening: a port may move from
// all addresses to one.
func (p *Proxy) closeUnwanted(wants []want) {
	wanted := make(map[address]bool, len(wants))
	for _, w := range wants {
		wanted[w.address] = true
	}
	for a := range p.listeners {
		if !wanted[a] {
			p.closeListener(a)
		}
	}
}

func (p *Proxy) closeListener(a address) {
	p.listeners[a].close()
	delete(p.listeners, a)
	p.metrics.listeners.WithLabelValues(string(a.protocol)).Dec()
}

// ensure makes the listener that w describes, or has the one there is do as w says. The want of the latest snapshot is kept
// even if nothing has changed, lest it hold on to an old snapshot.
func (p *Proxy) ensure(ctx context.Context, w want) error {
	if b, open := p.listeners[w.address]; open {
		if !b.sameAs(w) {
			b.aim(p.newTarget(w))
		}
		p.listeners[w.address] = bound{w, b.listener}
		return nil
	}
	l, err := p.listen(ctx, w)
	if err != nil {
		return fmt.Errorf("stream: %v: %w%s", w.service, err, advice(err))
	}
	p.listeners[w.address] = bound{w, l}
	p.metrics.listeners.WithLabelValues(string(w.address.protocol)).Inc()
	p.listening.Go(l.serve)
	return nil
}
