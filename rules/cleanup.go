package rules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
)

// Cleanup removes all that a Kernel makes, of this or an earlier version and by either backend: VIPs and their link,
// routes, forwarding, rules. It says what it removed, and goes on after an error. Connections in flight are kept by
// conntrack until they end, as far as routes and forwarding let them.
func Cleanup(ctx context.Context, o Options) (removed []string, err error) {
	o = o.withDefaults()
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	var errs []error
	for _, step := range []func() ([]string, error){
		func() ([]string, error) { return removeLink(o.Link) },
		removeRoutes,
		func() ([]string, error) { return turnForwardingOff(ctx) },
		func() ([]string, error) { return removeRules(ctx, BackendNFT) },
		func() ([]string, error) { return removeRules(ctx, BackendLegacy) },
	} {
		what, err := step()
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

func removeRoutes() (removed []string, err error) {
	list, err := mainRoutes()
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.Protocol != routeProtocol {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return removed, fmt.Errorf("remove route to %s: %w", prefixOf(r.Dst), err)
		}
		removed = append(removed, fmt.Sprintf("route to %s via %s", prefixOf(r.Dst), r.Gw))
	}
	return removed, nil
}

// removeRules removes our chains, and all jumps to them, from one backend. A backend that is not installed holds none.
func removeRules(ctx context.Context, b Backend) (removed []string, err error) {
	f, err := findFlavour(b)
	if err != nil {
		return nil, nil
	}
	found, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	return f.remove(ctx, found)
}

// remove removes what find has found, and says what.
func (f flavour) remove(ctx context.Context, found map[string]remnant) (removed []string, err error) {
	for _, table := range slices.Sorted(maps.Keys(found)) {
		r := found[table]
		if err := f.restore(ctx, r.remove(table)); err != nil {
			return removed, fmt.Errorf("remove rules from table %s: %w", table, err)
		}
		removed = append(removed, fmt.Sprintf("%d chains and %d jumps in table %s of %s", len(r.chains), len(r.jumps), table, f.command))
	}
	return removed, nil
}
