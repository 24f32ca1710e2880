package model

import (
	"cmp"
	"time"
)

// A PathMatch says how a Route's Path is compared with a request's.
type PathMatch string

// The ways to match, in the order of precedence for equal paths (networking/v1 HTTPIngressPath.pathType).
const (
	MatchExact   PathMatch = "Exact"
	MatchPrefix  PathMatch = "Prefix"  // by path element: /foo matches /foo and /foo/bar, not /foobar
	MatchDefault PathMatch = "Default" // whatever no other route of the host takes; Path is empty
)

// A Route sends the requests for one host and path to backends.
type Route struct {
	// Ref is the object that asks for the route, such as an Ingress.
	Ref     ObjectRef `json:"ref"`
	Created time.Time `json:"created"`
	// Host is in lower case, without port and trailing dot: a name, "*." and a name (one label, any value), or
	// empty for every host that no other route names.
	Host  string    `json:"host"`
	Path  string    `json:"path,omitempty"`
	Match PathMatch `json:"match"`
	// RedirectHTTPS says that requests in clear are answered by a redirect to https.
	RedirectHTTPS bool `json:"redirectHTTPS,omitempty"`
	// Backends share the requests by weight. Empty means that nothing usable was named: 503.
	Backends []Backend `json:"backends"`
}

// Compare orders routes by host, path and match, then the older first, then by object.
func (r Route) Compare(o Route) int {
	if c := cmp.Compare(r.Host, o.Host); c != 0 {
		return c // as nearly always
	}
	return cmp.Or(cmp.Compare(r.Path, o.Path), cmp.Compare(r.Match, o.Match), r.Created.Compare(o.Created), r.Ref.Compare(o.Ref))
}

// A Backend is what a route sends to: a service port and its share of the requests.
type Backend struct {
	Service ObjectRef `json:"service"` // of kind Service; resolved by Snapshot.Service
	Port    uint16    `json:"port"`    // ServicePort.port, TCP
	Weight  int       `json:"weight"`  // share relative to the other backends' weights
}
