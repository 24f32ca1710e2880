package rules

import (
	"io"

	"sallyport/rules/iptables"
	"sallyport/rules/nftables"
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
		if err := write(w, plan.New(s, f, p), o.Dataplane); err != nil {
			return err
		}
	}
	return nil
}

func write(w io.Writer, p *plan.Plan, d Dataplane) (err error) {
	if d == DataplaneNFTables {
		_, err = io.WriteString(w, nftables.Text(p))
	} else {
		_, err = iptables.Render(p).WriteTo(w)
	}
	return err
}
