package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sallyport/watcher/model"
)

// A want is a listener that a snapshot asks for.
type want struct {
	address      address
	service      model.ObjectRef
	destinations []model.Destination
}

// A bound is a want that was met.
type bound struct {
	want
	listener
}

// Reconcile opens and closes listeners to match the snapshot: NodePorts on Options.NodePortAddresses, service ports
// on their VIPs where those are addresses of this machine. A service port without destinations is not listened on, so
// that the kernel refuses its clients.
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

// wants lists the listeners that s asks for, each address once, and an error for each one asked for again.
func (p *Proxy) wants(s *model.Snapshot) (wants []want, errs []error) {
	owner := make(map[address]model.ObjectRef)
	for i := range s.Services {
		svc := &s.Services[i]
		for k := range svc.Ports {
			port := &svc.Ports[k]
			if len(port.Destinations) == 0 {
				continue
			}
			for _, a := range p.addresses(svc, port) {
				if first, taken := owner[a]; taken {
					errs = append(errs, fmt.Errorf("stream: %v: %v is taken by %v; give one of them another port", svc.Ref, a, first))
					continue
				}
				owner[a] = svc.Ref
				wants = append(wants, want{a, svc.Ref, port.Destinations})
			}
		}
	}
	return wants, errs
}

// addresses lists where a service port is to be listened on.
func (p *Proxy) addresses(svc *model.Service, port *model.ServicePort) []address {
	var out []address
	if port.NodePort != 0 {
		for _, ip := range p.opt.NodePortAddresses {
			out = append(out, address{port.Protocol, ip, port.NodePort})
		}
	}
	for _, vip := range svc.VIPs {
		out = append(out, address{port.Protocol, vip, port.Port})
	}
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

// ensure makes the listener that w describes, or gives the one there is its new destinations.
func (p *Proxy) ensure(ctx context.Context, w want) error {
	if b, open := p.listeners[w.address]; open {
		if b.service != w.service || !slices.Equal(b.destinations, w.destinations) {
			b.aim(p.newTarget(w))
			p.listeners[w.address] = bound{w, b.listener}
		}
		return nil
	}
	l, err := p.listen(ctx, w.address, p.newTarget(w))
	if err != nil {
		return fmt.Errorf("stream: %v: %w%s", w.service, err, advice(err))
	}
	p.listeners[w.address] = bound{w, l}
	p.metrics.listeners.WithLabelValues(string(w.address.protocol)).Inc()
	p.listening.Go(l.serve)
	return nil
}
