package rules

import (
	"fmt"
	"slices"

	"github.com/coreos/go-iptables/iptables"
)

// A hook is a jump from a built-in chain to one of ours.
type hook struct{ table, from, to string }

// hooks are the only rules of Sallyport outside its own chains. They stand first in their chains: what another program
// accepts or drops before us would otherwise decide over our connections.
var hooks = [...]hook{
	{"filter", "INPUT", "SALLY-INPUT"},
	{"filter", "FORWARD", "SALLY-FORWARD"},
	{"nat", "POSTROUTING", "SALLY-POSTROUTING"},
	{"nat", "PREROUTING", "SALLY-SERVICES"},
	{"nat", "OUTPUT", "SALLY-SERVICES"},
}

// line is the hook as iptables-save prints it.
func (h hook) line() string { return "-A " + h.from + " -j " + h.to }

// ensureHooks makes the jumps that are missing, and adds the chains made for them to found. It runs while these are
// still empty: each command of iptables-legacy copies its whole table.
func ensureHooks(ipt *iptables.IPTables, found map[string]remnant) error {
	for _, h := range hooks {
		has := found[h.table]
		if slices.Contains(has.jumps, h.line()) {
			continue
		}
		if !slices.Contains(has.chains, h.to) {
			if err := ipt.NewChain(h.table, h.to); err != nil {
				return fmt.Errorf("make chain %s in table %s: %w", h.to, h.table, err)
			}
			has.chains = append(has.chains, h.to)
			found[h.table] = has
		}
		if err := ipt.Insert(h.table, h.from, 1, "-j", h.to); err != nil {
			return fmt.Errorf("jump from %s to %s in table %s: %w", h.from, h.to, h.table, err)
		}
	}
	return nil
}

// restoreHooks makes those of the wanted jumps that are missing. The chains that they lead to are there.
func restoreHooks(ipt *iptables.IPTables, wanted func(hook) bool) error {
	for _, h := range hooks {
		if !wanted(h) {
			continue
		}
		if err := ipt.InsertUnique(h.table, h.from, 1, "-j", h.to); err != nil {
			return fmt.Errorf("jump from %s to %s in table %s: %w", h.from, h.to, h.table, err)
		}
	}
	return nil
}

// isHooked says whether a built-in chain has one of the hooks.
func isHooked(table, chain string) bool {
	return slices.ContainsFunc(hooks[:], func(h hook) bool { return h.table == table && h.from == chain })
}
