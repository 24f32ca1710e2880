package rules

import (
	"io"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// Print writes the rules for a snapshot as the tools that load them read them.
func Print(w io.Writer, s *model.Snapshot, o Options) error {
	_, err := iptables.Render(plan.New(s, plan.IPv4, o.plan())).WriteTo(w)
	return err
}
