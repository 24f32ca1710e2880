package nftables

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// words are what nft calls things of a family.
type words struct {
	ip       string // the protocol, and the table's family
	address  string // the type
	icmp     string
	client   string // the address that limits count by
	unserved string // addresses of this machine that no NodePort is served at: loopback, and those of one link only
}

func wordsOf(f plan.Family) words {
	if f == plan.IPv4 {
		return words{"ip", "ipv4_addr", "icmp", "ip saddr", "127.0.0.0/8"}
	}
	return words{"ip6", "ipv6_addr", "ipv6-icmp", "ip6 saddr and ffff:ffff:ffff:ffff::", "{ ::1, fe80::/10 }"}
}

// Names of the sets and maps. README.md has what they hold.
const (
	services             = "services"
	nodePorts            = "nodeports"
	destinations         = "destinations"          // behind a protocol and a dash
	nodePortDestinations = "nodeport-destinations" // the same
	serviceIDs           = "service-ids"
	nodePortServiceIDs   = "nodeport-service-ids"
	portIDs              = "port-ids"
	nodePortPortIDs      = "nodeport-port-ids"
	sourceRanges         = "source-ranges"
	newConnections       = "new-connections"
	clientConnections    = "client-connections"
	connections          = "connections"
	clients              = "clients"
	remembered           = "remembered"
	groups               = "groups"
	vips                 = "vips"
	clusterIPs           = "cluster-ips"
	nodePortAddresses    = "nodeport-addresses"
	inside               = "inside"
	held                 = "held"
	answers              = "answers"
	answerPorts          = "answer-ports"
	routed               = "routed"
)

// sets declares them all, empty. The limits on size only keep the kernel's memory from being filled by clients.
func (w words) sets() []Set {
	entry := w.address + " . inet_proto . inet_service"
	of := func(name, spec string) Set { return Set{Name: name, Map: strings.Contains(spec, " : "), Spec: spec} }
	dynamic := func(name, spec string) Set {
		s := of(name, spec)
		s.Dynamic = true
		return s
	}
	sets := []Set{
		of(vips, "type "+w.address+";"),
		of(clusterIPs, "type "+w.address+";"),
		of(nodePortAddresses, "type "+w.address+"; flags interval;"),
		of(services, "type "+entry+" : verdict;"),
		of(nodePorts, "type inet_proto . inet_service : verdict;"),
		of(serviceIDs, "type "+entry+" : mark;"),
		of(nodePortServiceIDs, "type inet_proto . inet_service : mark;"),
		of(portIDs, "type "+entry+" : mark;"),
		of(nodePortPortIDs, "type inet_proto . inet_service : mark;"),
		of(sourceRanges, "type mark . "+w.address+"; flags interval;"),
		dynamic(newConnections, "type mark . "+w.address+"; flags dynamic,timeout; timeout 10s; size 1048576;"),
		dynamic(clientConnections, "type mark . "+w.address+"; flags dynamic; size 1048576;"),
		dynamic(connections, "type mark; flags dynamic; size 65536;"),
		dynamic(clients, "type mark . "+w.address+" : "+w.address+" . inet_service; flags dynamic,timeout; timeout 3h; size 1048576;"),
		of(remembered, "type mark : verdict;"),
		of(groups, "type "+w.address+" : verdict;"),
		of(inside, "type "+w.address+"; flags interval;"),
		of(held, "type "+w.address+";"),
		of(answers, "type "+w.address+"; flags interval;"),
		of(answerPorts, "type "+w.address+" . inet_service; flags interval;"),
		of(routed, "type "+w.address+"; flags interval;"),
	}
	// A slot is a number, for which nft has no name of a type: one that is calculated alike stands for it. Types that stand for
	// fields of a protocol hold for packets of that one only, so that there is a map for each.
	for _, proto := range protocols {
		slot := proto + " dport . numgen random mod 2 : " + w.ip + " daddr . " + proto + " dport;"
		sets = append(sets,
			of(proto+"-"+destinations, "typeof "+w.ip+" daddr . "+slot),
			of(proto+"-"+nodePortDestinations, "typeof "+slot))
	}
	return sets
}

// protocols are those of service ports, as nft spells them.
var protocols = [...]string{"tcp", "udp", "sctp"}

// Render computes the table for a plan. It is pure: equal plans give equal tables.
func Render(p *plan.Plan) Table {
	w := wordsOf(p.Family)
	r := renderer{Plan: p, words: w, sets: map[string]*Set{}, chains: map[string]Chain{}, ids: map[uint32]string{},
		tables: map[*plan.Target][]uint32{}, live: map[liveness]bool{}}
	t := Table{Family: p.Family, Sets: w.sets()}
	for i := range t.Sets {
		r.sets[t.Sets[i].Name] = &t.Sets[i]
	}
	r.services()
	r.networks()
	r.base()
	for _, c := range r.chains {
		t.Chains = append(t.Chains, c)
	}
	t.live = r.live
	slices.SortFunc(t.Chains, func(a, b Chain) int { return cmp.Compare(a.Name, b.Name) })
	return t
}

// A renderer turns one plan into a table.
type renderer struct {
	*plan.Plan
	words
	sets   map[string]*Set
	chains map[string]Chain
	ids    map[uint32]string         // what each mark stands for
	tables map[*plan.Target][]uint32 // slots, of service ports seen
	live   map[liveness]bool
}

func (r *renderer) add(set, key, value string) {
	s := r.sets[set]
	s.Elements = append(s.Elements, Element{Key: key, Value: value})
}

func (r *renderer) chain(name, hook string, rules ...string) {
	r.chains[name] = Chain{Name: name, Hook: hook, Rules: rules}
}

// services fills the maps that lead from an address and port to a chain and on to destinations.
func (r *renderer) services() {
	for _, a := range r.Addresses {
		if a.Own {
			r.add(vips, a.Addr.String(), "")
		} else {
			r.add(clusterIPs, a.Addr.String(), "")
		}
		if int(a.Group) < len(r.SNAT) && r.SNAT[a.Group].First.IsValid() {
			r.add(groups, a.Addr.String(), "goto "+r.snat(a.Group))
		}
		for _, e := range a.Entries {
			r.entry(&atAddress, a.Addr.String()+" . ", e)
		}
	}
	for _, e := range r.NodePorts {
		r.entry(&atNodePort, "", e)
	}
}

// networks fills the sets of addresses that do not come from Services.
func (r *renderer) networks() {
	for _, p := range r.NodePortAddresses {
		r.add(nodePortAddresses, p.String(), "")
	}
	for _, p := range r.Inside {
		r.add(inside, p.String(), "")
	}
	for _, a := range r.Held {
		r.add(held, a.String(), "")
	}
	for _, p := range plan.Disjoint(ofFamily(r.Family, r.Routed)) {
		r.add(routed, p.String(), "")
	}
	for _, a := range r.Answers {
		if a.LastPort == 0 {
			r.add(answers, a.Prefix.String(), "")
		} else {
			r.add(answerPorts, fmt.Sprintf("%s . %d-%d", a.Prefix, a.FirstPort, a.LastPort), "")
		}
	}
}

// ofFamily are the prefixes of a family.
func ofFamily(f plan.Family, prefixes []netip.Prefix) (out []netip.Prefix) {
	for _, p := range prefixes {
		if f.Has(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// id is the mark that stands for something. It follows from what that is, so that clients' state outlives changes of
// everything else and a new process; only of two that fall on the same mark, the later one in the plan gets the next one.
func (r *renderer) id(what string) (mark string, isNew bool) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(what)) // a hash takes all
	sum := h.Sum32()
	for n := sum ^ sum>>8; ; n++ {
		id := r.Owner() | n&^plan.OwnerMask
		if holder, taken := r.ids[id]; !taken || holder == what {
			r.ids[id] = what
			return hex(id), !taken
		}
	}
}

func hex(mark uint32) string { return "0x" + strconv.FormatUint(uint64(mark), 16) }

// comment names a service port to who reads the rules. Names come from the cluster: one that the API server would not have
// taken (RFC 1123 labels), or that is longer than nft's comments, is left out.
func comment(svc model.ObjectRef, port string) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-./:"
	name := svc.Namespace + "/" + svc.Name
	if port != "" {
		name += ":" + port
	}
	if len(name) > 128 || strings.Trim(name, letters) != "" {
		return ""
	}
	return name
}
