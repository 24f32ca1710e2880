// Package route compiles the routes of a snapshot into a table and finds the route of a request in it.
//
// A Table is immutable. The cost of a match depends on the length of the path, not on the number of routes: the host
// is one map lookup, an exact path another, and a prefix one for each depth at which the host has prefixes. The
// semantics are those of networking/v1 Ingress. Host and path of a request must have been through AppendHost and
// AppendPath; what is matched is then also what is forwarded.
package route

import (
	"bytes"
	"strings"

	"sallyport/watcher/model"
)

// A Route is a route of the snapshot that the table was compiled from.
type Route struct {
	*model.Route
	Index int // in Snapshot.Routes: consumers keep what belongs to a route in a slice beside it
}

// A Table finds the route of a request. The zero value has no routes.
type Table struct {
	exact    map[string]*host // by host
	wildcard map[string]*host // by what follows the first label, with its dot: ".example.com"
	any      *host            // routes without a host
}

// A host is the routes of one host.
type host struct {
	exact        map[string]*Route
	prefix       map[string]*Route // by path without trailing slash; "" is the prefix "/"
	longestExact int               // bytes of the longest key of exact
	longest      int               // bytes of the longest key of prefix
	depths       depthSet          // numbers of elements that keys of prefix have
	fallback     *Route            // of model.MatchDefault
}

// Compile builds the table of the snapshot's routes. Of two that match the same, the first one counts. A route whose
// host or path no normalised request can have is left out.
func Compile(s *model.Snapshot) *Table {
	t := &Table{exact: make(map[string]*host), wildcard: make(map[string]*host), any: new(host)}
	routes := make([]Route, len(s.Routes))
	for i := range s.Routes {
		routes[i] = Route{Route: &s.Routes[i], Index: i}
		if h := t.host(s.Routes[i].Host); h != nil {
			h.add(&routes[i])
		}
	}
	return t
}

// host returns the entry for a Route.Host, which is made if it is new, or nil if the name is not one.
func (t *Table) host(name string) *host {
	if name == "" {
		return t.any
	}
	hosts := t.exact
	if strings.HasPrefix(name, "*.") {
		hosts, name = t.wildcard, name[1:]
	}
	_, normal, err := AppendHost(nil, []byte(strings.TrimPrefix(name, ".")))
	if err != nil || string(normal) != strings.TrimPrefix(name, ".") {
		return nil
	}
	h := hosts[name]
	if h == nil {
		h = new(host)
		hosts[name] = h
	}
	return h
}

func (h *host) add(r *Route) {
	if r.Match == model.MatchDefault {
		if h.fallback == nil {
			h.fallback = r
		}
		return
	}
	normal, err := AppendPath(nil, []byte(r.Path))
	if err != nil {
		return
	}
	path := string(normal)
	switch r.Match {
	case model.MatchExact:
		h.longestExact = max(h.longestExact, len(path))
		h.exact = insert(h.exact, path, r)
	case model.MatchPrefix:
		path = strings.TrimSuffix(path, "/")
		h.longest = max(h.longest, len(path))
		h.depths.add(strings.Count(path, "/"))
		h.prefix = insert(h.prefix, path, r)
	}
}

// insert adds the route unless the path is taken. Most hosts have no path of one of the two kinds, hence no map.
func insert(m map[string]*Route, path string, r *Route) map[string]*Route {
	if m == nil {
		m = make(map[string]*Route)
	}
	if _, taken := m[path]; !taken {
		m[path] = r
	}
	return m
}

// Match returns the route of a request, or nil. host is normalised and without port, path is normalised. The most
// specific host that has any route decides: exact, then wildcard, then none; one that has no route for the path does
// not fall through to a less specific one. It does not allocate.
func (t *Table) Match(host, path []byte) *Route {
	if h := t.exact[string(host)]; h != nil {
		return h.match(path)
	}
	if dot := bytes.IndexByte(host, '.'); dot > 0 {
		if h := t.wildcard[string(host[dot:])]; h != nil {
			return h.match(path)
		}
	}
	if t.any == nil {
		return nil
	}
	return t.any.match(path)
}

// match gives an exact path precedence, then the longest prefix, then the fallback.
func (h *host) match(path []byte) *Route {
	if len(path) <= h.longestExact {
		if r := h.exact[string(path)]; r != nil {
			return r
		}
	}
	if h.prefix != nil {
		if r := h.matchPrefix(path); r != nil {
			return r
		}
	}
	return h.fallback
}

// matchPrefix probes the path at each of its slashes from the end, beginning with the longest that can be stored.
func (h *host) matchPrefix(path []byte) *Route {
	end := len(path)
	if end > h.longest {
		end = bytes.LastIndexByte(path[:h.longest+1], '/')
	}
	if end < 0 {
		return nil
	}
	for depth := bytes.Count(path[:end], slash); ; depth-- {
		if h.depths.has(depth) {
			if r := h.prefix[string(path[:end])]; r != nil {
				return r
			}
		}
		if end = bytes.LastIndexByte(path[:end], '/'); end < 0 {
			return nil
		}
	}
}

var slash = []byte{'/'}

// A depthSet is a set of numbers of path elements. All that are 63 or more share a bit.
type depthSet uint64

func (s *depthSet) add(n int)     { *s |= 1 << min(n, 63) }
func (s depthSet) has(n int) bool { return s&(1<<min(n, 63)) != 0 }
