package rules

import (
	"io"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// Print writes the rules for a snapshot as the tools that load them read them, IPv4's first. It asks the machine that it runs on
// for nothing: where no NodePortAddresses are set, NodePorts answer at all local addresses.
func Print(w io.Writer, s *model.Snapshot, o Options) error {
	for _, f := range plan.Families {
		p := o.Options
		if len(p.NodePortAddresses) == 0 {
			p.NodePortAddresses = prefixes("0.0.0.0/0", "::/0")
		}
		if _, err := iptables.Render(plan.New(s, f, p)).WriteTo(w); err != nil {
			return err
		}
	}
	return nil
}
