package translate

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"sallyport/watcher/model"
)

// A nodeEntry is what the destinations need to know of a node.
type nodeEntry struct {
	name    string
	addr    [families]netip.Addr // InternalIPs; invalid if there is none
	takes   [families]bool       // node port traffic
	pods    [families]bool       // its pods are reached directly
	leaving bool                 // it is to get no new traffic, see isLeaving
	place   uint32               // where the node stands on the ring of entries
}

// maxEntries is how many nodes a service port's traffic is spread over when it goes through node ports. The nodes'
// kube-proxies spread it over all endpoints anyway; sending to every node would cost services times nodes.
const maxEntries = 8

// readNodes adds the cluster's nodes to the snapshot and fills t.network.
func (t *translator) readNodes() {
	for _, n := range sorted(t.in.Nodes) {
		if _, repeated := t.node[n.Name]; repeated {
			continue
		}
		m := t.modelNode(n)
		e := t.entryOf(n, &m)
		if e.pods != [families]bool{} {
			m.Reach = model.ReachPods
		}
		t.out.Nodes = append(t.out.Nodes, m)
		t.node[n.Name] = e
		t.nodes = append(t.nodes, e)
		for f := range e.takes {
			if e.takes[f] {
				t.entries[f] = append(t.entries[f], e)
			}
		}
	}
	for f := range t.entries {
		t.entries[f] = ring(t.entries[f], family(f))
	}
}

func (t *translator) entryOf(n *corev1.Node, m *model.Node) nodeEntry {
	e := nodeEntry{name: n.Name, leaving: m.Leaving, place: place(n.Name)}
	for f, reachable := range [families]func(model.ObjectRef) bool{t.o.PodsReachable, t.o.IPv6PodsReachable} {
		e.pods[f] = t.o.Reach == model.ReachPods || t.o.Reach == model.ReachAuto && reachable != nil && reachable(m.Ref)
	}
	for f, like := range [families]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		var has bool
		e.addr[f], has = m.InternalIP(like)
		e.takes[f] = has && m.Ready && !e.leaving
	}
	return e
}

// ring orders entries by address, and many of them by place. Of those with the same address one stays.
func ring(entries []nodeEntry, f family) []nodeEntry {
	slices.SortStableFunc(entries, func(a, b nodeEntry) int { return a.addr[f].Compare(b.addr[f]) })
	entries = slices.CompactFunc(entries, func(a, b nodeEntry) bool { return a.addr[f] == b.addr[f] })
	if len(entries) > maxEntries {
		slices.SortStableFunc(entries, func(a, b nodeEntry) int { return cmp.Compare(a.place, b.place) })
	}
	return entries
}

// entriesFor are the nodes that take the traffic of one node port: all, or, of many, those that follow the port's
// place on the ring, so that a node that comes or goes changes the entries of few ports. They are ordered by address.
func (n *network) entriesFor(nodePort uint16, f family) []nodeEntry {
	all := n.entries[f]
	if len(all) <= maxEntries {
		return all
	}
	first, _ := slices.BinarySearchFunc(all, place(strconv.Itoa(int(nodePort))), func(e nodeEntry, p uint32) int { return cmp.Compare(e.place, p) })
	out := make([]nodeEntry, maxEntries)
	for i := range out {
		out[i] = all[(first+i)%len(all)]
	}
	slices.SortFunc(out, func(a, b nodeEntry) int { return a.addr[f].Compare(b.addr[f]) })
	return out
}

// place spreads names over the ring. Names that differ only in their last digits are the rule, and cheaper hashes leave
// them side by side.
func place(name string) uint32 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint32(sum[:])
}

func (t *translator) modelNode(n *corev1.Node) model.Node {
	return model.Node{
		Ref:         t.ref("Node", n),
		InternalIPs: t.internalIPs(n),
		PodCIDRs:    t.podCIDRs(n),
		Ready:       isReady(n),
		Leaving:     isLeaving(n),
		Zone:        n.Labels[corev1.LabelTopologyZone],
		Reach:       model.ReachNodes,
	}
}

// internalIPs are the node's own addresses. Those that could only be the edge itself or a whole segment are refused:
// traffic would go where the cluster's users have no business.
func (t *translator) internalIPs(n *corev1.Node) []netip.Addr {
	var ips []netip.Addr
	for i, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		ip, why := t.destinationAddr(a.Address)
		if why != "" {
			t.problem(t.ref("Node", n), indexed("status.addresses", i, ".address"), model.ReasonInvalidField,
				"%q %s: the address is not used", a.Address, why)
			continue
		}
		ips = append(ips, ip)
	}
	return ips
}

func (t *translator) podCIDRs(n *corev1.Node) []netip.Prefix {
	var cidrs []netip.Prefix
	for i, s := range n.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.problem(t.ref("Node", n), indexed("spec.podCIDRs", i, ""), model.ReasonInvalidField,
				"%q is not a CIDR: there will be no route to the node's pods", s)
			continue
		}
		cidrs = append(cidrs, p.Masked())
	}
	return cidrs
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// taintToBeDeleted is what the cluster autoscaler puts on a node before it removes it.
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// isLeaving says whether a node is to get no new traffic although it may be Ready: its deletion has begun or is announced, or
// its owner asks for it (core/v1 LabelNodeExcludeBalancers). Cloud providers' load balancers look at the same.
func isLeaving(n *corev1.Node) bool {
	value, labelled := n.Labels[corev1.LabelNodeExcludeBalancers]
	return n.DeletionTimestamp != nil || labelled && value != "false" ||
		slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taintToBeDeleted })
}
