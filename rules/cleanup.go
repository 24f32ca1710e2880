package rules

import (
	"context"
	"errors"
	"fmt"

	"sallyport/rules/plan"
)

// Cleanup removes all that a Kernel makes, of this or an earlier version and by whichever dataplane: VIPs and their link,
// routes, forwarding, rules. It says what it removed, and goes on after an error. Connections in flight are kept by
// conntrack until they end, as far as routes and forwarding let them.
func Cleanup(ctx context.Context, o Options) (removed []string, err error) {
	o = o.withDefaults()
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	n, err := openNetwork()
	if err != nil {
		return nil, err
	}
	defer n.Close()
	places := places()
	steps := []func(context.Context) ([]string, error){
		func(context.Context) ([]string, error) { return n.removeLink(o.Link) },
	}
	for _, f := range plan.Families {
		s := newStack(f)
		steps = append(steps,
			func(context.Context) ([]string, error) { return s.removeRoutes(n) },
			func(ctx context.Context) ([]string, error) { return turnForwardingOff(ctx, s, places) })
	}
	for _, p := range places {
		steps = append(steps, p.Remove)
	}
	var errs []error
	for _, step := range steps {
		what, err := step(ctx)
		removed = append(removed, what...)
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// removeLink removes the link for VIPs, and local routes to VIPs also where a link of that name is not ours.
func (n *network) removeLink(name string) (removed []string, err error) {
	here, err := n.readAddresses(name)
	refused, failed := n.remove(localRoutes(here.vips, nil))
	if failed = errors.Join(append(refused, failed)...); failed != nil {
		return nil, fmt.Errorf("remove local routes to VIPs: %w", errors.Join(failed, err))
	}
	vips := fmt.Sprintf("%d VIPs", len(here.vips))
	if err == nil && here.link != nil {
		if err := n.LinkDel(here.link); err != nil {
			return []string{vips}, fmt.Errorf("remove link %s: %w", name, err)
		}
		return []string{"link " + name + " with " + vips}, nil
	}
	if len(here.vips) > 0 {
		removed = []string{vips}
	}
	return removed, err
}

func (s *stack) removeRoutes(n *network) (removed []string, err error) {
	if err := s.readRoutes(n); err != nil {
		return nil, err
	}
	for _, r := range s.main {
		if r.Protocol != routeProtocol {
			continue
		}
		own := s.ownRoute(&r)
		refused, err := n.remove([]ownRoute{own})
		if err = errors.Join(append(refused, err)...); err != nil {
			return removed, fmt.Errorf("remove route to %s: %w", own.to, err)
		}
		removed = append(removed, fmt.Sprintf("route to %s via %s", own.to, own.gateway))
	}
	return removed, nil
}
