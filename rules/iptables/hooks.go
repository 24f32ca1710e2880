package iptables

import "slices"

// Prefix begins the names of our chains, those of earlier versions included.
const Prefix = "SALLY-"

// A Hook is a jump from a built-in chain to one of ours.
type Hook struct{ Table, From, To string }

// Hooks are the only rules of Sallyport outside its own chains. They stand first in their chains: what another program
// accepts or drops before us would otherwise decide over our connections.
var Hooks = [...]Hook{
	{"filter", "INPUT", "SALLY-INPUT"},
	{"filter", "FORWARD", "SALLY-FORWARD"},
	{"filter", "OUTPUT", "SALLY-OUTPUT"},
	{"nat", "POSTROUTING", "SALLY-POSTROUTING"},
	{"nat", "PREROUTING", "SALLY-SERVICES"},
	{"nat", "OUTPUT", "SALLY-SERVICES"},
}

// Line is the hook as iptables-save prints it.
func (h Hook) Line() string { return "-A " + h.From + " -j " + h.To }

// IsHook says whether a rule, as iptables-save prints it, is one of the hooks. Those are the same in every table.
func IsHook(line string) bool {
	return slices.ContainsFunc(Hooks[:], func(h Hook) bool { return h.Line() == line })
}

// IsHooked says whether a built-in chain has one of the hooks.
func IsHooked(table, chain string) bool {
	return slices.ContainsFunc(Hooks[:], func(h Hook) bool { return h.Table == table && h.From == chain })
}
