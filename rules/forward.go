package rules

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"sallyport/rules/iptables"
)

// Forwarding has to be on for Sallyport's connections, but this machine stands between clients and nodes: it must not
// become a router between them by that. If forwarding was off, no one else relied on it, and nothing but Sallyport's
// connections is forwarded. If it was on, others keep what they had; only the routes to pods, which are new, are closed
// to them.

const forwardingSysctl = "/proc/sys/net/ipv4/ip_forward"

// learnRouter finds out whether others rely on forwarding: not if it is off, nor if an earlier run turned it on.
func (k *Kernel) learnRouter(ctx context.Context) error {
	on, err := forwarding()
	if err != nil || on && k.learnt {
		return err
	}
	alone := !on
	if on {
		if alone, err = turnedOn(ctx, k.flavour.backend); err != nil {
			return err
		}
		other, _ := turnedOn(ctx, k.flavour.backend.other()) // leaveOther tells of one that cannot be read
		alone = alone || other
	}
	k.o.Router, k.learnt = !alone, true
	return nil
}

// turnForwardingOn is called when the rules stand that keep it to ourselves.
func (k *Kernel) turnForwardingOn(ctx context.Context) error {
	changed, err := setSysctl(forwardingSysctl, "1")
	if err != nil {
		return fmt.Errorf("turn IPv4 forwarding on: %w: set net.ipv4.ip_forward=1 in /etc/sysctl.d", err)
	}
	if changed {
		k.log.InfoContext(ctx, "forwarding turned on, for Sallyport's connections only", "sysctl", "net.ipv4.ip_forward=1")
	}
	return nil
}

// turnForwardingOff undoes turnForwardingOn, and nothing else. It comes before the rules go.
func turnForwardingOff(ctx context.Context) (removed []string, err error) {
	nft, nftErr := turnedOn(ctx, BackendNFT)
	legacy, legacyErr := turnedOn(ctx, BackendLegacy)
	if !nft && !legacy {
		return nil, errors.Join(nftErr, legacyErr)
	}
	changed, err := setSysctl(forwardingSysctl, "0")
	if err != nil || !changed {
		return nil, err
	}
	return []string{"net.ipv4.ip_forward=1, which was 0"}, nil
}

// turnedOn says whether a run of Sallyport with the backend turned forwarding on, by the chain that remembers it.
func turnedOn(ctx context.Context, b Backend) (bool, error) {
	f, err := findFlavour(b)
	if err != nil {
		return false, nil // not installed: it holds nothing
	}
	found, err := f.find(ctx)
	return slices.Contains(found["filter"].chains, iptables.AloneChain), err
}

func forwarding() (bool, error) {
	value, err := os.ReadFile(forwardingSysctl)
	return strings.TrimSpace(string(value)) == "1", err
}
