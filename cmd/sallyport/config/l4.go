package config

import (
	"fmt"
	"net/netip"
	"slices"

	"sallyport/lb"
)

func (c *Config) checkL4(p *problems) {
	p.oneOf("l4.dataplane", c.L4.Dataplane, DataplaneIptables, DataplaneNFTables, DataplaneUserspace)
	p.oneOf("l4.iptablesBackend", c.L4.IptablesBackend, "auto", "nft", "legacy")
	p.oneOf("l4.snat", c.L4.SNAT, SNATAuto, SNATAlways, SNATNever)
	p.oneOf("l4.returnPath", c.L4.ReturnPath, ReturnDirect, ReturnEdge)
	if c.L4.SNAT == SNATNever && c.L4.ReturnPath != ReturnEdge {
		p.add("l4.snat", "never needs the nodes to answer through the edge: set l4.returnPath: edge when they do, or l4.snat: auto")
	}
	c.checkNodePortAddresses(p)
	c.checkExternalIPs(p)
}

func (c *Config) checkNodePortAddresses(p *problems) {
	p.prefixes("l4.nodePortAddresses", c.L4.NodePortAddresses)
	for i, x := range c.L4.NodePortAddresses {
		if c.L4.Dataplane == DataplaneUserspace && !x.IsSingleIP() && x.Bits() > 0 { // left out, it would leave none, which means the primary
			p.add(fmt.Sprintf("l4.nodePortAddresses[%d]", i),
				"%v is a network, and userspace listens on addresses: name each of this machine's, as %v/%d", x, x.Addr(), x.Addr().BitLen())
		}
	}
}

// checkExternalIPs keeps apart what anyone who can write a Service may take, and what pools give (CVE-2020-8554).
func (c *Config) checkExternalIPs(p *problems) {
	p.prefixes("l4.externalIPs", c.L4.ExternalIPs)
	for i, x := range c.L4.ExternalIPs {
		key := fmt.Sprintf("l4.externalIPs[%d]", i)
		r, err := lb.ParseRange(x.String())
		if err != nil {
			continue // prefixes has said so
		}
		if pool := overlapping(r, c.Pools); pool != "" {
			p.add(key, "%v overlaps %s: who can write a Service could take another's address", x, pool)
		}
		if x.Bits() == 0 {
			p.add(key, "%v lets who can write a Service take any address: name the networks that are meant for it", x)
		}
	}
}

// maxGroups is how many groups a packet mark can tell apart.
const maxGroups = 15

func (c *Config) checkGroups(p *problems) {
	if len(c.Groups) > maxGroups {
		p.add(fmt.Sprintf("groups[%d]", maxGroups), "there are %d groups, and %d are possible: remove the others", len(c.Groups), maxGroups)
	}
	names := map[string]int{}
	for i := range c.Groups {
		g, key := &c.Groups[i], fmt.Sprintf("groups[%d]", i)
		if !isName(g.Name) {
			p.add(key+".name", "%q is not a name: use lower-case letters, digits and hyphens", g.Name)
		}
		if first, again := names[g.Name]; again {
			p.add(key+".name", "%q is also the name of groups[%d]: names are unique", g.Name, first)
		}
		names[g.Name] = i
		g.SNAT = p.snatAddresses(c, i)
		p.nodesGateway(c, i)
		if c.L4.Dataplane == DataplaneUserspace && (len(g.SNAT) > 0 || len(g.NodesGateway) > 0) {
			p.add(key, "userspace has connections of its own, with this machine's address: use another l4.dataplane, or leave the addresses out")
		}
	}
	if c.L4.ReturnPath == ReturnEdge && !slices.ContainsFunc(c.Groups, func(g Group) bool { return len(g.NodesGateway) > 0 }) {
		p.add("l4.returnPath", "edge needs an address that nodes route clients through: give groups[].nodesGateway")
	}
}

// maxSNATAddresses is how many addresses a group has at most, which all stand on the link for VIPs.
const maxSNATAddresses = 256

// snatAddresses parses those of group i.
func (p *problems) snatAddresses(c *Config, i int) (out []lb.Range) {
	for j, text := range c.Groups[i].SNATAddresses {
		at := fmt.Sprintf("groups[%d].snatAddresses[%d]", i, j)
		r, err := lb.ParseRange(text)
		sameFamily := func(o lb.Range) bool { return o.First.Is4() == r.First.Is4() }
		switch {
		case err != nil:
			p.add(at, "%v", err)
		case slices.ContainsFunc(out, sameFamily):
			p.add(at, "%s is a second range of its family, and the kernel takes one: make one range of both", text)
		case !fewer(r, maxSNATAddresses):
			p.add(at, "%s is more than %d addresses: a few do", text, maxSNATAddresses)
		case c.forServices(r) != "":
			p.add(at, "%s overlaps %s: these are addresses on the nodes' network", text, c.forServices(r))
		case slices.ContainsFunc(c.Groups[:i], func(g Group) bool { return slices.ContainsFunc(g.SNAT, r.Overlaps) }):
			p.add(at, "%s overlaps the range of an earlier group: an address moves with one group", text)
		default:
			out = append(out, r)
		}
	}
	return out
}

// fewer says whether a range is at most so many addresses.
func fewer(r lb.Range, most int) bool {
	n := 0
	for a := r.First; n <= most && a.Compare(r.Last) <= 0 && a.IsValid(); a = a.Next() {
		n++
	}
	return n <= most
}

// forServices says what of the addresses Services may take overlaps a range, or is empty.
func (c *Config) forServices(r lb.Range) string {
	for _, x := range c.L4.ExternalIPs {
		if external, err := lb.ParseRange(x.String()); err == nil && external.Overlaps(r) {
			return fmt.Sprintf("%v of l4.externalIPs", x)
		}
	}
	return overlapping(r, c.Pools)
}

// nodesGateway checks that of group i.
func (p *problems) nodesGateway(c *Config, i int) {
	list := c.Groups[i].NodesGateway
	for j, a := range list {
		at := fmt.Sprintf("groups[%d].nodesGateway[%d]", i, j)
		switch {
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" || a.Is4In6():
			p.add(at, "%v is no address that nodes can route through", a)
		case slices.ContainsFunc(list[:j], func(o netip.Addr) bool { return o.Is4() == a.Is4() }):
			p.add(at, "%v is a second one of its family: a group has one", a)
		case c.forServices(lb.Range{First: a, Last: a}) != "":
			p.add(at, "%v is in %s: who can write a Service could take it from the nodes", a, c.forServices(lb.Range{First: a, Last: a}))
		case slices.ContainsFunc(c.Groups[:i], func(g Group) bool { return slices.Contains(g.NodesGateway, a) }):
			p.add(at, "%v is an earlier group's: an address moves with one group", a)
		}
	}
}
