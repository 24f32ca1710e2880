package rules

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

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
	places := places()
	steps := []func(context.Context) ([]string, error){
		func(context.Context) ([]string, error) { return removeLink(o.Link) },
	}
	for _, f := range plan.Families {
		s := newStack(f)
		steps = append(steps,
			func(context.Context) ([]string, error) { return s.removeRoutes() },
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

func removeLink(name string) ([]string, error) {
	here, err := readAddresses(name)
	if err != nil || here.link == nil {
		return nil, err
	}
	if err := netlink.LinkDel(here.link); err != nil {
		return nil, fmt.Errorf("remove link %s: %w", name, err)
	}
	return []string{fmt.Sprintf("link %s with %d VIPs", name, len(here.vips))}, nil
}

func (s *stack) removeRoutes() (removed []string, err error) {
	list, err := s.mainRoutes()
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.Protocol != routeProtocol {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return removed, fmt.Errorf("remove route to %s: %w", s.prefix(r.Dst), err)
		}
		removed = append(removed, fmt.Sprintf("route to %s via %s", s.prefix(r.Dst), r.Gw))
	}
	return removed, nil
}
