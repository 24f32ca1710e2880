package explain

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sallyport/gateway/route"
	"sallyport/watcher/model"
)

// A target is what is to be explained, in its normal form.
type target struct {
	text    string
	explain func(e *explainer) error
}

// A request is the target of a URL.
type request struct {
	scheme string // http or https
	host   string // normalised, without port
	port   uint16
	path   string // normalised
	bad    string // why the gateway answers it 400, or empty
}

// parse reads a target.
func parse(s string) (target, error) {
	s = strings.TrimSpace(s)
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		switch scheme = strings.ToLower(scheme); scheme {
		case "http", "https":
			return parseURL(scheme, rest)
		case "tcp", "udp", "sctp":
			return parseConnection(scheme, rest)
		}
		return target{}, fmt.Errorf("%q: scheme %q is not http, https, tcp, udp or sctp: try http://shop.example.com/cart or tcp://192.0.2.10:443", s, scheme)
	}
	kind, rest, _ := strings.Cut(s, "/")
	namespace, name, ok := strings.Cut(rest, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return target{}, fmt.Errorf("%q is neither a URL (http://shop.example.com/cart), a connection (tcp://192.0.2.10:443, udp://..., sctp://...) "+
			"nor an object (service/shop/web, ingress/shop/web)", s)
	}
	return parseObject(s, kind, namespace, name)
}

// parseURL reads what follows the scheme of a URL. Query and fragment have no say in where a request goes.
func parseURL(scheme, rest string) (target, error) {
	authority, path := rest, "/"
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	path, _, _ = strings.Cut(path, "#")
	path, _, _ = strings.Cut(path, "?")
	if path == "" {
		path = "/"
	}
	if authority == "" {
		return target{}, fmt.Errorf("%s://%s names no host: try %s://shop.example.com/cart", scheme, rest, scheme)
	}
	r := request{scheme: scheme, port: map[string]uint16{"http": 80, "https": 443}[scheme], path: path}
	text := scheme + "://" + authority + path
	normal, host, err := route.AppendHost(nil, []byte(authority))
	if err != nil {
		r.bad = "its host is not valid"
		return target{text, r.explain}, nil
	}
	r.host = string(host)
	if _, port, ok := strings.Cut(string(normal[len(host):]), ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return target{}, fmt.Errorf("%s: %q is not a port: use 1 to 65535", text, port)
		}
		r.port = uint16(n)
	}
	cleaned, err := route.AppendPath(nil, []byte(path))
	if err != nil {
		r.bad = "its path is not valid"
		return target{text, r.explain}, nil
	}
	r.path = string(cleaned)
	return target{scheme + "://" + string(normal) + r.path, r.explain}, nil
}

// parseConnection reads address and port, and, after "?from=", the address of the client.
func parseConnection(scheme, rest string) (target, error) {
	to, from, given := strings.Cut(rest, "?from=")
	addr, err := netip.ParseAddrPort(strings.TrimSuffix(to, "/"))
	if err != nil || addr.Port() == 0 || addr.Addr().Zone() != "" {
		return target{}, fmt.Errorf("%s://%s is not an IP address and a port: try %s://192.0.2.10:443 or %s://[2001:db8::1]:443", scheme, rest, scheme, scheme)
	}
	c := connection{protocol: model.Protocol(strings.ToUpper(scheme)), to: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}
	if given {
		client, err := netip.ParseAddr(from)
		if client = client.Unmap(); err != nil || client.Zone() != "" || client.Is4() != c.to.Addr().Is4() {
			return target{}, fmt.Errorf("%s://%s: %q is no address of a client in the same family: try %s://192.0.2.10:443?from=198.51.100.7", scheme, rest, from, scheme)
		}
		c.from = client
	}
	return target{c.String(), c.explain}, nil
}

// parseObject reads the name of an object. namespace may begin with the name of its cluster.
func parseObject(s, kind, namespace, name string) (target, error) {
	o := object{namespace: namespace, name: name}
	if cluster, ns, ok := strings.Cut(namespace, ":"); ok {
		o.cluster, o.namespace = cluster, ns
	}
	switch strings.ToLower(kind) {
	case "service", "services", "svc":
		o.kind = "Service"
		return target{"service/" + namespace + "/" + name, o.service}, nil
	case "ingress", "ingresses", "ing":
		o.kind = "Ingress"
		return target{"ingress/" + namespace + "/" + name, o.ingress}, nil
	}
	return target{}, fmt.Errorf("%q: kind %q is not service or ingress: try service/shop/web", s, kind)
}
