// Package translate turns Kubernetes objects into the desired state of an edge.
//
// Translate is pure: no clock, network, logger or map order, and the inputs are not modified. It never fails: what
// cannot be honoured is left out and explained in Snapshot.Problems, so that one bad object cannot hurt its
// neighbours. Every rule of translation has a scenario in testdata.
package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// Options are what translation needs to know beside the objects.
type Options struct {
	// Reach is how endpoints are reached: auto, pods or nodes. Empty means auto.
	Reach model.Reach
	// PodsReachable says whether this edge reaches the pods of a node directly, and IPv6PodsReachable whether it does by IPv6.
	// They are consulted in reach auto only, once for each node; nil means that none are reached.
	PodsReachable, IPv6PodsReachable func(node model.ObjectRef) bool
	// AllowLoopbackEndpoints takes endpoints at loopback addresses, for the demo, whose pods are local processes. It must
	// be false with a real cluster, whose users could otherwise send traffic to the edge's own services.
	AllowLoopbackEndpoints bool
	// OwnAddresses are those of the edge. No endpoint or node has one, or who can write an EndpointSlice would reach what
	// the edge itself runs.
	OwnAddresses []netip.Addr
	// ListenPorts are those that the edge itself listens on; a NodePort equal to one is not served.
	ListenPorts []ListenPort
	// IPv6 says that the dataplane serves IPv6, beside IPv4: VIPs, NodePorts, and destinations of that family.
	IPv6 bool
	// SCTP says that the dataplane serves SCTP.
	SCTP bool
	// ProxyProtocol says that the dataplane can speak the PROXY protocol to endpoints.
	ProxyProtocol bool
	// KeepsSource says that endpoints see the addresses of clients, as externalTrafficPolicy Local asks for.
	KeepsSource bool
	// ExternalIPs are the networks within which spec.externalIPs are served. Empty means none: whoever may edit a Service
	// could take any address (CVE-2020-8554).
	ExternalIPs []netip.Prefix
	// ClusterIPs says that spec.clusterIPs are served to who routes them to the edge.
	ClusterIPs bool
	// Zone is that of the edge, which topology hints are followed for (discovery/v1 EndpointHints.forZones). Empty means that
	// they are not.
	Zone string
	// NodeHealthy says whether a node has endpoints of the Service with that healthCheckNodePort, as the node itself tells
	// (KEP-3836). nil means that all have.
	NodeHealthy func(node model.ObjectRef, healthCheckNodePort uint16) bool
	// TLS says that https is served.
	TLS bool
	// DefaultCertificate names the Secret whose certificate is presented where no other is; empty means none.
	DefaultCertificate objects.Name
	// RedirectHTTPS answers requests in clear for hosts with TLS by a redirect, where an Ingress does not say otherwise.
	RedirectHTTPS bool
	// Certificates remembers what Secrets hold from one translation to the next; nil parses all of them each time.
	Certificates *CertificateCache
	// Memo remembers what Services have become from one translation to the next; nil translates all of them each time.
	Memo *Memo
}

// A ListenPort is a port that the edge itself listens on.
type ListenPort struct {
	Protocol model.Protocol
	Port     uint16
	What     string // who listens, for the Problem: "l7 (l7.addresses)"
}

// Translate computes the desired state. LoadBalancer Services have no VIPs yet: lb gives them.
func Translate(in objects.Objects, o Options) *model.Snapshot {
	out := new(model.Snapshot)
	pairs := o.Certificates.round()
	var clusters []*translator
	var routes []candidate
	var hosts []hostClaim
	for _, c := range in {
		t := newTranslator(c, o, pairs, out)
		t.source()
		t.readNodes()
		t.memory = o.Memo.of(&t.network)
		t.services()
		t.ingresses()
		clusters = append(clusters, t)
		routes, hosts = concat(routes, t.routes), concat(hosts, t.hostClaims)
	}
	sortServices(out)
	resolveNodePorts(out, clusters, o.ListenPorts)
	resolveRoutes(out, routes)
	resolveDefault(out, clusters, o, resolveHosts(out, hosts))
	resolveStatuses(out)
	o.Certificates.keep(pairs)
	slices.SortStableFunc(out.Nodes, func(a, b model.Node) int { return a.Ref.Compare(b.Ref) })
	out.Problems = model.FirstProblems(out.Problems)
	return out
}

// A network is what a Service is translated by, beside its own objects.
type network struct {
	cluster string
	o       Options
	nodes   []nodeEntry // ordered by name
	node    map[string]nodeEntry
	entries [families][]nodeEntry // the nodes that take node port traffic, ordered by address, without repeats
}

// ref is the identity of an object of this cluster.
func (n *network) ref(kind string, o metav1.Object) model.ObjectRef {
	return model.ObjectRef{Cluster: n.cluster, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// A translator translates the objects of one cluster into out, which all clusters share.
type translator struct {
	network
	in        objects.Cluster
	out       *model.Snapshot
	memory    *memory                         // of the Services
	secrets   map[objects.Name]*corev1.Secret // if TLS is served
	noSecrets map[objects.Name]bool           // see deniedSecrets
	pairs     *keyPairs

	routes     []candidate
	hostClaims []hostClaim
}

func newTranslator(c objects.Cluster, o Options, pairs *keyPairs, out *model.Snapshot) *translator {
	if o.Reach == "" {
		o.Reach = model.ReachAuto
	}
	return &translator{
		network: network{cluster: c.Name, o: o, node: make(map[string]nodeEntry, len(c.Nodes))},
		in:      c, out: out, pairs: pairs,
		secrets:   indexSecrets(c, o),
		noSecrets: deniedSecrets(c),
		routes:    make([]candidate, 0, len(c.Ingresses)),
	}
}

// problem records what could not be honoured.
func (t *translator) problem(o model.ObjectRef, field string, r model.Reason, format string, args ...any) {
	t.out.Problems = append(t.out.Problems, problemOf(o, field, r, format, args...))
}

func problemOf(o model.ObjectRef, field string, r model.Reason, format string, args ...any) model.Problem {
	return model.Problem{Object: o, Field: field, Reason: r, Message: brief(fmt.Sprintf(format, args...), maxMessage)}
}

// concat appends b to a, and copies nothing where a is empty, as it is of the first cluster.
func concat[T any](a, b []T) []T {
	if len(a) == 0 {
		return b
	}
	return append(a, b...)
}

// created is the object's creationTimestamp, in UTC so that equal times compare equal with ==.
func created(o metav1.Object) time.Time { return o.GetCreationTimestamp().UTC() }

// annotationField is the field path of an annotation.
func annotationField(key string) string { return "metadata.annotations[" + key + "]" }

// sorted returns the objects in the order of their names; the input, which a cache owns, stays as it is.
func sorted[T metav1.Object](in []T) []T {
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b T) int { return compareNames(nameOf(a), nameOf(b)) })
	return out
}
