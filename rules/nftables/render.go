package nftables

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// words are what nft calls things of a family.
type words struct {
	ip       string // the protocol, and the table's family
	address  string // the type
	icmp     string
	network  string // the client's address that limits count by
	clientAs string // what is of the type of renderer.client
	unserved string // addresses of this machine that no NodePort is served at: loopback, and those of one link only
}

func wordsOf(f plan.Family) words {
	if f == plan.IPv4 {
		return words{"ip", "ipv4_addr", "icmp", "ip saddr", "ip saddr", "127.0.0.0/8"}
	}
	return words{"ip6", "ipv6_addr", "ipv6-icmp", "ip6 saddr and ffff:ffff:ffff:ffff::", aNumber, "{ ::1, fe80::/10 }"}
}

// Names of the sets and maps. README.md has what they hold.
const (
	services             = "services"
	nodePorts            = "nodeports"
	destinations         = "destinations"          // behind a protocol and a dash
	nodePortDestinations = "nodeport-destinations" // the same
	serviceIDs           = "service-ids"
	nodePortServiceIDs   = "nodeport-service-ids"
	stickyPorts          = "sticky-ports"
	nodePortStickyPorts  = "nodeport-sticky-ports"
	stickySlots          = "sticky-slots"
	nodePortStickySlots  = "nodeport-sticky-slots"
	stickyEndpoints      = "sticky-endpoints"
	sourceRanges         = "source-ranges"
	newConnections       = "new-connections"
	clientConnections    = "client-connections"
	connections          = "connections"
	clients              = "clients"
	timeouts             = "timeouts"
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
		of(stickyPorts, "type "+entry+" : mark;"),
		of(nodePortStickyPorts, "type inet_proto . inet_service : mark;"),
		of(stickySlots, "typeof "+w.ip+" daddr . meta l4proto . tcp dport . "+aNumber+" : meta mark;"),
		of(nodePortStickySlots, "typeof meta l4proto . tcp dport . "+aNumber+" : meta mark;"),
		of(stickyEndpoints, "type mark : "+w.address+" . inet_service;"),
		of(sourceRanges, "type mark . "+w.address+"; flags interval;"),
		dynamic(newConnections, "type mark . "+w.address+"; flags dynamic,timeout; timeout 10s; size 1048576;"),
		dynamic(clientConnections, "type mark . "+w.address+"; flags dynamic; size 1048576;"),
		dynamic(connections, "type mark; flags dynamic; size 65536;"),
		dynamic(clients, "typeof meta mark . "+w.clientAs+" : meta mark; flags dynamic,timeout; timeout 3h; size 1048576;"),
		of(timeouts, "type mark : verdict;"),
		of(groups, "type "+w.address+" : verdict;"),
		of(inside, "type "+w.address+"; flags interval;"),
		of(held, "type "+w.address+";"),
		of(answers, "type "+w.address+"; flags interval;"),
		of(answerPorts, "type "+w.address+" . inet_service; flags interval;"),
		of(routed, "type "+w.address+"; flags interval;"),
	}
	// A value that is a port of a protocol is for packets of that one only, so that there is a map for each.
	for _, proto := range protocols {
		slot := proto + " dport . " + aNumber + " : " + w.ip + " daddr . " + proto + " dport;"
		sets = append(sets,
			of(proto+"-"+destinations, "typeof "+w.ip+" daddr . "+slot),
			of(proto+"-"+nodePortDestinations, "typeof "+slot))
	}
	return sets
}

// aNumber is of the type of numbers, such as slots, for which nft has no name.
const aNumber = "numgen random mod 2"

// protocols are those of service ports, as nft spells them.
var protocols = [...]string{"tcp", "udp", "sctp"}

// Render computes the table for a plan. It is pure: equal plans give equal tables.
func Render(p *plan.Plan) Table { return new(Renderer).Render(p) }

// A Renderer renders one plan after the other, and keeps what does not change. The zero value works. It is for one goroutine.
type Renderer struct {
	texts map[entryKey]*entryText
	marks marks
	sizes map[string]int // of the sets of the last plan
	round int
}

// Render gives the same as the function Render, in the words of the last plan where nothing about them changed. Only marks may
// differ, where two things would have the same one.
func (k *Renderer) Render(p *plan.Plan) Table {
	if k.texts == nil {
		k.texts, k.sizes = map[entryKey]*entryText{}, map[string]int{}
	}
	k.round++
	k.marks.next()
	w := wordsOf(p.Family)
	r := renderer{Plan: p, words: w, Renderer: k, sets: map[string]*Set{}, chains: map[string]Chain{},
		verdicts: map[treatment]string{}, ranged: map[*model.Service]bool{}}
	t := Table{Family: p.Family, Sets: w.sets()}
	for i := range t.Sets {
		set := &t.Sets[i]
		set.Elements = slices.Grow(set.Elements, k.sizes[set.Name])
		r.sets[set.Name] = set
	}
	r.services()
	r.networks()
	r.base()
	for _, set := range t.Sets {
		k.sizes[set.Name] = len(set.Elements)
	}
	maps.DeleteFunc(k.texts, func(_ entryKey, text *entryText) bool { return text.round != k.round })
	t.Chains = slices.SortedFunc(maps.Values(r.chains), func(a, b Chain) int { return cmp.Compare(a.Name, b.Name) })
	return t
}

// A renderer turns one plan into a table.
type renderer struct {
	*plan.Plan
	words
	*Renderer
	sets     map[string]*Set
	chains   map[string]Chain
	verdicts map[treatment]string    // that lead to the chains of treatments
	ranged   map[*model.Service]bool // whose source ranges are written
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
			r.entry(&atAddress, a.Addr, e)
		}
	}
	for _, e := range r.NodePorts {
		r.entry(&atNodePort, netip.Addr{}, e)
	}
}

// networks fills the sets of addresses that do not come from Services.
func (r *renderer) networks() {
	for _, p := range r.NodePortAddresses {
		r.add(nodePortAddresses, p.String(), "")
	}
	if r.KeepSource {
		for _, p := range r.Inside {
			r.add(inside, p.String(), "")
		}
	}
	for _, a := range r.Held {
		r.add(held, a.String(), "")
	}
	if r.Router {
		for _, p := range plan.Disjoint(ofFamily(r.Family, r.Routed)) {
			r.add(routed, p.String(), "")
		}
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
