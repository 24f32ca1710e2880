package rules

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"

	"sallyport/rules/plan"
)

// Forwarding has to be on for Sallyport's connections, but this machine stands between clients and nodes: it must not
// become a router between them by that. If forwarding was off, no one else relied on it, and nothing but Sallyport's
// connections is forwarded. If it was on, others keep what they had; only the routes to pods, which are new, are closed
// to them.
//
// That of IPv6 is turned on only when a Service has destinations in IPv6.

// learnRouter finds out whether others rely on forwarding: not if it is off, nor if an earlier run turned it on.
func (k *Kernel) learnRouter(ctx context.Context, s *stack) error {
	on, err := s.forwards()
	if err != nil || on && s.learnt {
		return err
	}
	alone := !on
	if on {
		if alone, err = k.turnedOn(ctx, s.Family); err != nil {
			return err
		}
	}
	s.router, s.learnt = !alone, on
	return nil
}

// needsForwarding says whether forwarding is to be on for a plan.
func (s *stack) needsForwarding(p *plan.Plan) bool {
	if s.Family == plan.IPv4 {
		return true
	}
	leads := func(list []plan.Entry) bool {
		for _, e := range list {
			if len(e.Destinations) > 0 {
				return true
			}
		}
		return false
	}
	for _, a := range p.Addresses {
		if leads(a.Entries) {
			return true
		}
	}
	return leads(p.NodePorts)
}

// turnForwardingOn is called when the rules stand that keep it to ourselves.
func (k *Kernel) turnForwardingOn(ctx context.Context, s *stack) error {
	on, err := s.forwards()
	if err == nil && !on {
		if err = s.forward(); err == nil {
			k.log.InfoContext(ctx, "forwarding turned on, for Sallyport's connections only", "sysctl", s.forwarding+"=1")
		}
	}
	if err != nil {
		return fmt.Errorf("turn %v forwarding on: %w: set %s=1 in /etc/sysctl.d", s.Family, err, s.forwarding)
	}
	s.learnt = true
	return nil
}

func (s *stack) forwards() (bool, error) {
	value, err := readSysctl(s.forwarding)
	return value == "1", err
}

// forward turns forwarding on. With IPv6 that makes each link a router's, which no longer listens to other routers (RFC 4861,
// section 6.2.2) and forgets the default route that it has from them. Links that were a host's stay so, then: the kernel
// forwards between them all the same.
func (s *stack) forward() error {
	if s.Family == plan.IPv4 {
		_, err := setSysctl(s.forwarding, "1")
		return err
	}
	hosts, err := hostLinks()
	if err != nil {
		return err
	}
	for _, l := range hosts {
		if err := l.set("accept_ra", "2"); err != nil { // to listen nevertheless, or the route would go
			return err
		}
	}
	if _, err := setSysctl(s.forwarding, "1"); err != nil {
		return err
	}
	for _, l := range hosts {
		if err := l.set("forwarding", "0"); err != nil {
			return err
		}
		if err := l.set("accept_ra", l.acceptRA); err != nil {
			return err
		}
	}
	return nil
}

// A hostLink is a link on which this machine is a host of IPv6, and no router.
type hostLink struct{ name, acceptRA string }

// hostLinks lists them, and the setting for those to come.
func hostLinks() (list []hostLink, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := []string{"default"}
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	for _, name := range names {
		forwarding, err := readSysctl(linkSysctl(name, "forwarding"))
		if err != nil || forwarding != "0" {
			continue // without IPv6, or gone
		}
		acceptRA, err := readSysctl(linkSysctl(name, "accept_ra"))
		if err != nil {
			return nil, err
		}
		list = append(list, hostLink{name, acceptRA})
	}
	return list, nil
}

func (l hostLink) set(setting, value string) error {
	if setting == "accept_ra" && l.acceptRA != "1" {
		return nil // whoever set it otherwise meant that
	}
	_, err := setSysctl(linkSysctl(l.name, setting), value)
	return err
}

func linkSysctl(link, setting string) string {
	return "net.ipv6.conf." + dotsToSlashes.Replace(link) + "." + setting
}

// turnForwardingOff undoes turnForwardingOn, and nothing else. It comes before the rules go.
func turnForwardingOff(ctx context.Context, s *stack, places []place) (removed []string, err error) {
	on, err := anyAlone(ctx, places, s.Family)
	if !on {
		return nil, err
	}
	changed, err := setSysctl(s.forwarding, "0")
	if err != nil || !changed {
		return nil, err
	}
	return []string{s.forwarding + "=1, which was 0"}, nil
}
