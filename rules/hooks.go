package rules

import (
	"errors"
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

// missingHooks gives the commands that make those of the wanted jumps that are missing. They are run together with what writes the
// chains: each command of iptables-legacy copies its whole table.
func missingHooks(ipt *goiptables.IPTables, wanted func(iptables.Hook) bool) (commands []string, err error) {
	const badParameter = 2 // exit status (xtables/PARAMETER_PROBLEM): the chain that the jump leads to is gone, too
	for _, h := range iptables.Hooks {
		if !wanted(h) {
			continue
		}
		exists, err := ipt.Exists(h.Table, h.From, "-j", h.To)
		if failed, ok := errors.AsType[*goiptables.Error](err); err != nil && (!ok || failed.ExitStatus() != badParameter) {
			return nil, fmt.Errorf("look for the jump from %s to %s in table %s: %w", h.From, h.To, h.Table, err)
		}
		if !exists {
			commands = append(commands, fmt.Sprintf("-I %s 1 -j %s", h.From, h.To))
		}
	}
	return commands, nil
}
