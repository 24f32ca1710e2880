package rules

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
)

// A Finding is something on this machine that may get in Sallyport's way, or that it depends on.
type Finding struct {
	Subject string `json:"subject"` // what it is about, such as "firewalld"
	Message string `json:"message"` // what was found, what follows from it and what to do; commands on lines of their own
}

// Inspect looks for what may get in the way of the dataplane and of L7's ports (Options.L7Ports): other firewalls, rules of the
// other iptables backend, kernel settings. It changes nothing. What it may not read is itself a finding; the only error is that
// of ctx.
func Inspect(ctx context.Context, o Options) ([]Finding, error) {
	i := &inspection{o: o.withDefaults(), own: map[plan.Family]dump{}, other: map[plan.Family]dump{}}
	i.forwarding()
	i.reversePathFilter()
	i.conntrack()
	if err := checkPrivilege(); err != nil {
		i.add("privileges", "The rules cannot be read, so other firewalls are not looked for: %v", err)
		return i.findings, ctx.Err()
	}
	for _, f := range plan.Families {
		if has, _ := hasIPv6(); has || f == plan.IPv4 {
			i.iptables(ctx, f)
		}
	}
	i.nftables()
	i.firewalls()
	return i.findings, ctx.Err()
}

// An inspection collects findings.
type inspection struct {
	o        Options
	own      map[plan.Family]dump // of the backend that Sallyport uses
	other    map[plan.Family]dump // of the other one
	chains   []baseChain          // of nf_tables, those of iptables-nft aside
	findings []Finding
}

func (i *inspection) add(subject, format string, args ...any) {
	i.findings = append(i.findings, Finding{subject, fmt.Sprintf(format, args...)})
}

// forwarding tells of IPv4's only: that of IPv6 is turned on when it is needed, and where it cannot be, IPv4 goes on.
func (i *inspection) forwarding() {
	on, err := newStack(plan.IPv4).forwards()
	switch {
	case err != nil:
		i.add("ip_forward", "%v", err)
	case !on:
		i.add("ip_forward", "Off. Sallyport turns it on, and then forwards nothing but its own connections. "+
			"Where it must not write settings, set it beforehand:\necho net.ipv4.ip_forward=1 > /etc/sysctl.d/90-sallyport.conf && sysctl --system")
	}
}

// reversePathFilter looks for links on which answers may be dropped (RFC 3704 strict mode). The stricter of a link's own
// setting and the one for all counts, where 2, loose, is the highest.
func (i *inspection) reversePathFilter() {
	strict, uplinks, err := i.strictLinks()
	if err != nil {
		i.add("rp_filter", "%v", err)
	}
	if uplinks < 2 || len(strict) == 0 {
		return
	}
	var loose []string
	for _, name := range strict {
		loose = append(loose, "sysctl -w net.ipv4.conf."+name+".rp_filter=2")
	}
	i.add("rp_filter", "Strict on %s: packets are dropped there whose source is routed by another link, such as those of clients with a "+
		"second way to this machine. If there are such, set it to loose:\n%s", strings.Join(strict, ", "), strings.Join(loose, "\n"))
}

// strictLinks are the links of those with an address, uplinks in number, that filter strictly.
func (i *inspection) strictLinks() (strict []string, uplinks int, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, 0, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if name == "lo" || name == i.o.Link {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return nil, 0, fmt.Errorf("list addresses of link %s: %w", name, err)
		}
		if len(addrs) == 0 {
			continue
		}
		uplinks++
		if max(rpFilter("all"), rpFilter(name)) == 1 {
			strict = append(strict, name)
		}
	}
	return strict, uplinks, nil
}

func rpFilter(link string) int {
	n, _ := readNumber("/proc/sys/net/ipv4/conf/" + link + "/rp_filter")
	return n
}

// conntrack compares the size of the connection table with what is in it. Each connection through L4 takes one entry.
func (i *inspection) conntrack() {
	const small = 65536
	size, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return // the module is loaded with the first rule
	}
	used, _ := readNumber("/proc/sys/net/netfilter/nf_conntrack_count")
	if size < small || used > size/4*3 {
		i.add("conntrack", "%d of %d connections are used, and new ones are dropped when all are. Make room:\nsysctl -w net.netfilter.nf_conntrack_max=%d",
			used, size, max(4*small, 2*size))
	}
}

func readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// iptables reads the rules of a family in both backends.
func (i *inspection) iptables(ctx context.Context, family plan.Family) {
	if i.o.Dataplane == DataplaneNFTables {
		i.own[family] = i.otherRules(ctx, BackendNFT, family, "nftables")
		i.other[family] = i.otherRules(ctx, BackendLegacy, family, "nftables")
		return
	}
	own, err := findFlavour(i.o.Backend, family)
	if err != nil {
		i.add(commandOf(family), "%v", err)
		return
	}
	if err := own.checkUser(); err != nil {
		i.add(own.command, "%v", err)
	} else if i.own[family], err = own.dump(ctx); err != nil {
		i.add(own.command, "The rules cannot be read: %v", err)
	}
	other := BackendNFT
	if own.backend == other {
		other = BackendLegacy
	}
	i.other[family] = i.otherRules(ctx, other, family, own.command)
	i.early(own)
}

// otherRules reads and reports rules of a backend that Sallyport does not use, but own: the kernel asks both, and what one drops is
// dropped. What is not installed holds none.
func (i *inspection) otherRules(ctx context.Context, b Backend, family plan.Family, own string) dump {
	f, err := findFlavour(b, family)
	if err != nil {
		return nil
	}
	d, err := f.dump(ctx)
	if err != nil {
		i.add(f.command, "The rules cannot be read: %v", err)
	}
	count, tables := d.foreign()
	if count > 0 {
		i.add(f.command, "%d rules in %s: the kernel asks them beside those of %s, and what either drops is dropped. See %s-save.",
			count, strings.Join(tables, ", "), own, f.command)
	}
	if d.policy("filter", "FORWARD") == "DROP" {
		i.acceptForward(f, d)
	}
	if d.policy("filter", "INPUT") == "DROP" {
		i.openPorts(f.command, "The policy of INPUT is DROP.", f.command+openInput, ",")
	}
	return d
}

// acceptForward says how a backend that Sallyport does not use lets its connections pass. With nftables that is done already, or
// else, as for legacy where it is not root's, they are known by their connmark from the first packet on.
func (i *inspection) acceptForward(f flavour, d dump) {
	if i.o.Dataplane == DataplaneNFTables && f.checkUser() == nil {
		i.add(f.command, "%s", forwardDrops)
		return
	}
	first, next := iptables.Accepting("FORWARD", i.o.Options)
	rules := []string{first, next}
	if i.o.Dataplane == DataplaneNFTables {
		rules = rules[1:]
	}
	if !d.holds("filter", rules...) {
		i.add(f.command, "The policy of FORWARD is DROP, which Sallyport's rules elsewhere cannot overrule. Let its connections pass:\n%s",
			f.command+" -I "+strings.Join(rules, "\n"+f.command+" -I "))
	}
}

const forwardDrops = "The policy of FORWARD is DROP. Sallyport's connections are accepted before that, so there is nothing to do."

// openInput is a command of iptables, but for the command itself.
const openInput = " -I INPUT -p tcp -m multiport --dports %s -j ACCEPT"

// early reports what decides before Sallyport does in its own backend.
func (i *inspection) early(f flavour) {
	d := i.own[f.family]
	if d.policy("filter", "FORWARD") == "DROP" {
		i.add(subject("FORWARD", f), "%s", forwardDrops)
	}
	if d.policy("filter", "INPUT") == "DROP" && !d.hasChain("ufw") {
		i.openPorts(subject("INPUT", f), "Its policy is DROP.", f.command+openInput, ",")
	}
	for _, h := range iptables.Hooks {
		if before := d.before(h); before > 0 {
			i.add(subject(h.From, f), "%d rules of table %s stand before Sallyport's, and decide first. See %s -t %s -S %s.", before, h.Table, f.command, h.Table, h.From)
		}
	}
	for _, c := range [][2]string{{"raw", "PREROUTING"}, {"mangle", "PREROUTING"}, {"mangle", "FORWARD"}} {
		if n := d.drops(c[0], c[1]); n > 0 {
			i.add(subject(c[1], f), "%d rules of table %s drop packets before Sallyport sees them. See %s -t %s -S %s.", n, c[0], f.command, c[0], c[1])
		}
	}
}

// subject is a built-in chain, with its family if that is not IPv4.
func subject(chain string, f flavour) string {
	if f.family == plan.IPv4 {
		return chain
	}
	return f.family.String() + " " + chain
}

// openPorts says how to open L7's ports. open is a command with a place for them, joined.
func (i *inspection) openPorts(subject, why, open, joint string) {
	if len(i.o.L7Ports) == 0 {
		return
	}
	var ports []string
	for _, p := range i.o.L7Ports {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	i.add(subject, "%s The ports of HTTP are closed unless a rule opens them:\n"+open, why, strings.Join(ports, joint))
}

// nftables looks for chains that drop what they do not accept, which no other chain can overrule.
func (i *inspection) nftables() {
	var err error
	if i.chains, err = baseChains(); err != nil {
		i.add("nftables", "The rules cannot be read: %v", err)
	}
	for _, c := range i.chains {
		if !c.drops || c.table == firewalldTable {
			continue
		}
		name := c.family + " " + c.table + " " + c.name
		switch c.hook {
		case unix.NF_INET_FORWARD:
			mark, mask := iptables.FirstPacket(i.o.Options)
			i.add("nftables", "Chain %s drops what it does not accept, which Sallyport's rules cannot overrule. Unless rules of it let "+
				"Sallyport's connections pass, add these, and put them into /etc/nftables.conf:\n"+
				"nft insert rule %s meta mark and %#x == %#x accept\nnft insert rule %s ct mark and %#x == %#x accept",
				name, name, mask, mark, name, uint32(plan.OwnerMask), i.o.Owner())
		case unix.NF_INET_LOCAL_IN:
			i.openPorts("nftables", "Chain "+name+" drops what it does not accept.", "nft insert rule "+name+" tcp dport { %s } accept", ", ")
		}
	}
}

const firewalldTable = "firewalld"

// firewalls names the programs that are known by their chains.
func (i *inspection) firewalls() {
	firewalld := slices.ContainsFunc(i.chains, func(c baseChain) bool { return c.table == firewalldTable })
	if firewalld || i.has("FWDI_") || i.has("IN_public") {
		i.openPorts("firewalld", "Active. It lets pass what is forwarded by DNAT, so NodePorts and VIPs need nothing (unless firewalld.conf says StrictForwardPorts=yes).",
			"firewall-cmd --permanent --add-port=%s/tcp && firewall-cmd --reload", "/tcp --add-port=")
	}
	if i.has("ufw") {
		i.openPorts("ufw", "Active. NodePorts and VIPs are accepted before its rules, so they need nothing.", "ufw allow proto tcp to any port %s", ",")
	}
	if i.has("DOCKER") {
		i.add("docker", "Active. It turns forwarding on and sets the policy of FORWARD to DROP. Sallyport's connections are accepted before that, "+
			"and DOCKER-USER is not asked about them.")
	}
	if i.has("KUBE-") || i.has("cali-") || i.has("CILIUM_") {
		i.add("kubernetes", "This machine looks like a node of a cluster (chains KUBE-, cali- or CILIUM_). An edge cannot be a node of the cluster that it serves.")
	}
}

func (i *inspection) has(chain string) bool {
	for _, f := range plan.Families {
		if i.own[f].hasChain(chain) || i.other[f].hasChain(chain) {
			return true
		}
	}
	return false
}
