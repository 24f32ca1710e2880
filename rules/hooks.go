package rules

import (
	"fmt"

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

// ensureHooks makes the jumps that are missing.
func ensureHooks(ipt *iptables.IPTables) error {
	for _, h := range hooks {
		if err := ipt.InsertUnique(h.table, h.from, 1, "-j", h.to); err != nil {
			return fmt.Errorf("jump from %s %s to %s: %w", h.table, h.from, h.to, err)
		}
	}
	return nil
}
