package rules

import (
	"fmt"
	"slices"

	goiptables "github.com/coreos/go-iptables/iptables"

	"sallyport/rules/iptables"
)

// ensureHooks makes the jumps that are missing, and adds the chains made for them to found. It runs while these are
// still empty: each command of iptables-legacy copies its whole table.
func ensureHooks(ipt *goiptables.IPTables, found map[string]remnant) error {
	for _, h := range iptables.Hooks {
		has := found[h.Table]
		if slices.Contains(has.jumps, h.Line()) {
			continue
		}
		if !slices.Contains(has.chains, h.To) {
			if err := ipt.NewChain(h.Table, h.To); err != nil {
				return fmt.Errorf("make chain %s in table %s: %w", h.To, h.Table, err)
			}
			has.chains = append(has.chains, h.To)
			found[h.Table] = has
		}
		if err := ipt.Insert(h.Table, h.From, 1, "-j", h.To); err != nil {
			return fmt.Errorf("jump from %s to %s in table %s: %w", h.From, h.To, h.Table, err)
		}
	}
	return nil
}

// restoreHooks makes those of the wanted jumps that are missing. The chains that they lead to are there.
func restoreHooks(ipt *goiptables.IPTables, wanted func(iptables.Hook) bool) error {
	for _, h := range iptables.Hooks {
		if !wanted(h) {
			continue
		}
		if err := ipt.InsertUnique(h.Table, h.From, 1, "-j", h.To); err != nil {
			return fmt.Errorf("jump from %s to %s in table %s: %w", h.From, h.To, h.Table, err)
		}
	}
	return nil
}
