// Package explain says what an edge does with a request or a connection, and why: which listener takes it, which route,
// Service and endpoints it leads to by which reach, or what is missing.
//
// Explain is pure: it looks at a snapshot and at nothing else, decides by the very code that serves (gateway/route), and
// says nothing that is secret. The result is for machines (JSON) and for people (WriteText).
package explain

import (
	"net/netip"
	"slices"
	"time"

	"sallyport/gateway/route"
	"sallyport/lb"
	"sallyport/watcher/model"
)

// Options are what there is to know about the edge beside the snapshot.
type Options struct {
	// Problems are all current ones. Nil means those of the snapshot.
	Problems []model.Problem
	// HTTPPort and HTTPSPort are where L7 listens; 0 means that it does not.
	HTTPPort, HTTPSPort uint16
	// L7Addresses are where it does. Empty means at every address of the edge.
	L7Addresses []netip.Addr
	// EdgeAddresses are the addresses of this machine, without VIPs.
	EdgeAddresses []netip.Addr
	// NodePortAddresses are where NodePorts are served. Empty means at every address of the edge.
	NodePortAddresses []netip.Prefix
	// Pools are those that LoadBalancer Services get their addresses from.
	Pools []lb.Pool
	// ListenPorts are the other TCP ports that the edge itself listens on, and what for, such as 9440: "admin".
	ListenPorts map[uint16]string
	// SourceRangesOnNodePorts is l4.sourceRangesOnNodePorts.
	SourceRangesOnNodePorts bool
	// Dataplane is l4.dataplane: iptables, nftables or userspace.
	Dataplane string
	// Now is the time that the end of certificates is compared with. Zero means that it is not.
	Now time.Time
}

// A Verdict is what becomes of a request or connection in a word.
type Verdict string

// The verdicts.
const (
	Served   Verdict = "served"   // it is sent on, or answered by what the edge itself runs
	Redirect Verdict = "redirect" // it is answered by a redirect
	Refused  Verdict = "refused"  // it is for the edge, which turns it down: a reset, or an error of HTTP
	Dropped  Verdict = "dropped"  // it is for the edge, which does not answer: the client is kept out
	None     Verdict = "none"     // nothing here takes it
)

// An Explanation is what becomes of a target, and why.
type Explanation struct {
	Target     string  `json:"target"` // in its normal form
	Verdict    Verdict `json:"verdict"`
	Summary    string  `json:"summary"`         // one line
	Generation uint64  `json:"generation"`      // of the snapshot
	Stale      bool    `json:"stale,omitempty"` // the snapshot is from a last-good file
	// Steps are what is gone through, in this order.
	Steps []Step `json:"steps,omitempty"`
	// Route is the one that takes the request; of an Ingress that is explained, Routes are all of it.
	Route  *Route  `json:"route,omitempty"`
	Routes []Route `json:"routes,omitempty"`
	// Certificate is what a client of https is shown. Nil means a self-signed one, if the step says so.
	Certificate *Certificate `json:"certificate,omitempty"`
	// Backends are the service ports that it leads to.
	Backends []Backend `json:"backends,omitempty"`
	// Problems are those of any object on the way.
	Problems []Problem `json:"problems,omitempty"`
	// Hints are what to do about it, or to look at.
	Hints []string `json:"hints,omitempty"`
}

// A Step is one thing on the way.
type Step struct {
	What   string `json:"what"` // a word: listener, certificate, host, path, chain, ...
	Detail string `json:"detail"`
}

// A Route is a route, for reading.
type Route struct {
	Object        string `json:"object"`         // "Ingress shop/web"
	Host          string `json:"host,omitempty"` // empty: any host
	Path          string `json:"path,omitempty"`
	Match         string `json:"match"` // Exact, Prefix or Default
	RedirectHTTPS bool   `json:"redirectHTTPS,omitempty"`
}

// A Certificate is a certificate, for reading.
type Certificate struct {
	Object   string    `json:"object"` // "Secret shop/tls"
	Hosts    []string  `json:"hosts,omitempty"`
	Default  bool      `json:"default,omitempty"`
	NotAfter time.Time `json:"notAfter"`
}

// A Backend is a service port with where its connections go.
type Backend struct {
	Service  string         `json:"service"` // "Service shop/web"
	Port     uint16         `json:"port"`
	Name     string         `json:"name,omitempty"`
	Protocol model.Protocol `json:"protocol"`
	NodePort uint16         `json:"nodePort,omitempty"`
	VIPs     []netip.Addr   `json:"vips,omitempty"` // and external IPs
	// Percent of the route's requests that this backend gets while it has destinations; 0 where there is no route.
	Percent      int           `json:"percent,omitempty"`
	Destinations []Destination `json:"destinations"`
	// Unused are the endpoints that get nothing.
	Unused []Endpoint `json:"unused,omitempty"`
}

// A Destination is where new connections are sent.
type Destination struct {
	Address netip.AddrPort `json:"address"`
	Reach   model.Reach    `json:"reach"`
	Node    string         `json:"node,omitempty"`
	Pod     string         `json:"pod,omitempty"` // with reach pods
	Zone    string         `json:"zone,omitempty"`
	Weight  uint16         `json:"weight,omitempty"` // share of the connections, where it is not 1
}

// An Endpoint is an endpoint that gets nothing, and why.
type Endpoint struct {
	Address netip.AddrPort `json:"address"`
	Why     string         `json:"why"`
	Node    string         `json:"node,omitempty"`
	Pod     string         `json:"pod,omitempty"`
	Zone    string         `json:"zone,omitempty"`
}

// A Problem is a model.Problem, for reading.
type Problem struct {
	Object  string       `json:"object"`
	Field   string       `json:"field,omitempty"`
	Reason  model.Reason `json:"reason"`
	Message string       `json:"message"`
}

// Explain says what becomes of a target: a URL (http://host/path, https://host/path), a connection (tcp://address:port,
// udp:// and sctp:// alike, with ?from=address for one client), or what leads to an object (service/NAMESPACE/NAME, ingress/NAMESPACE/NAME, the namespace preceded by
// "CLUSTER:" where clusters are named). The error says what is wrong with a target that is none of these.
func Explain(s *model.Snapshot, o Options, target string) (Explanation, error) {
	t, err := parse(target)
	if err != nil {
		return Explanation{}, err
	}
	if o.Problems == nil {
		o.Problems = s.Problems
	}
	e := &explainer{s: s, o: o, table: route.Compile(s), about: map[model.ObjectRef]bool{}}
	e.out = Explanation{Target: t.text, Generation: s.Generation, Stale: s.Stale}
	if err := t.explain(e); err != nil {
		return Explanation{}, err
	}
	if s.Stale {
		e.hint("the objects are from a last-good file, as an API server is not reached: they may have changed since")
	}
	e.problems()
	return e.out, nil
}

// An explainer makes one Explanation.
type explainer struct {
	s     *model.Snapshot
	o     Options
	table *route.Table
	out   Explanation
	about map[model.ObjectRef]bool // the objects on the way
	tells []func(model.Problem) bool
}

func (e *explainer) step(what, detail string) { e.out.Steps = append(e.out.Steps, Step{what, detail}) }

func (e *explainer) hint(text string) {
	if !slices.Contains(e.out.Hints, text) {
		e.out.Hints = append(e.out.Hints, text)
	}
}

func (e *explainer) conclude(v Verdict, summary string) { e.out.Verdict, e.out.Summary = v, summary }

// concerns makes the Problems of the object part of the explanation.
func (e *explainer) concerns(refs ...model.ObjectRef) {
	for _, r := range refs {
		e.about[r] = true
	}
}

// tell makes other Problems part of it.
func (e *explainer) tell(which func(model.Problem) bool) { e.tells = append(e.tells, which) }

// problems collects the Problems of the objects on the way, and, where nothing is sent on, those of whole clusters.
func (e *explainer) problems() {
	if e.out.Verdict != Served && e.out.Verdict != Redirect {
		e.tell(func(p model.Problem) bool { return p.Object.Kind == "Cluster" })
	}
	for _, p := range e.o.Problems {
		told := e.about[p.Object] || slices.ContainsFunc(e.tells, func(which func(model.Problem) bool) bool { return which(p) })
		if told {
			e.out.Problems = append(e.out.Problems, Problem{p.Object.String(), p.Field, p.Reason, p.Message})
		}
	}
}
