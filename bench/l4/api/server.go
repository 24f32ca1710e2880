// Package api serves a made-up cluster to programs that watch one.
//
// It stands in for the API server where tens of thousands of Services have to be there at once: lists, watches and
// streaming lists of Services, EndpointSlices, Nodes and namespaces, in protobuf or JSON as the client asks, of any other
// kind an empty list. Nothing can be written through it and it asks for no credentials; a State is changed by its owner's calls.
package api

import (
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// An object is one of the Kubernetes kinds that are served.
type object interface {
	runtime.Object
	metav1.Object
}

// An event is a change of an object that was made at a version of the server.
type event struct {
	version int64
	object  object
}

// A collection is the objects of one resource.
type collection struct {
	empty   func() runtime.Object // the list without items
	blank   func() object         // an object of the kind, for bookmarks
	objects []object              // in the order that they were made
	index   map[string]int        // namespace/name to place in objects
	changes []event               // oldest first
}

// A Server is an http.Handler that plays the API server of one cluster.
type Server struct {
	mu      sync.Mutex
	kinds   map[string]*collection // by resource
	version int64
	changed chan struct{} // closed and replaced at every change
}

// NewServer serves the state, which it does not change.
func NewServer(s *State) *Server {
	server := &Server{kinds: newCollections(), version: 1, changed: make(chan struct{})}
	for _, o := range s.Services {
		server.kinds["services"].put(o)
	}
	for _, o := range s.Slices {
		server.kinds["endpointslices"].put(o)
	}
	for _, o := range s.Nodes {
		server.kinds["nodes"].put(o)
	}
	server.kinds["namespaces"].put(&corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: "bench-l4", ResourceVersion: "1"},
	})
	return server
}

// newCollections are the kinds that kube-proxy and Sallyport ask for, all empty.
func newCollections() map[string]*collection {
	return map[string]*collection{
		"services":       kind[corev1.ServiceList, corev1.Service]("v1", "Service"),
		"nodes":          kind[corev1.NodeList, corev1.Node]("v1", "Node"),
		"namespaces":     kind[corev1.NamespaceList, corev1.Namespace]("v1", "Namespace"),
		"secrets":        kind[corev1.SecretList, corev1.Secret]("v1", "Secret"),
		"endpointslices": kind[discoveryv1.EndpointSliceList, discoveryv1.EndpointSlice]("discovery.k8s.io/v1", "EndpointSlice"),
		"ingresses":      kind[networkingv1.IngressList, networkingv1.Ingress]("networking.k8s.io/v1", "Ingress"),
		"ingressclasses": kind[networkingv1.IngressClassList, networkingv1.IngressClass]("networking.k8s.io/v1", "IngressClass"),
		"servicecidrs":   kind[networkingv1.ServiceCIDRList, networkingv1.ServiceCIDR]("networking.k8s.io/v1", "ServiceCIDR"),
	}
}

// kind makes the collection of the objects T, whose lists are L.
func kind[L, T any, PL interface {
	*L
	runtime.Object
}, PT interface {
	*T
	object
}](apiVersion, name string) *collection {
	return &collection{
		index: map[string]int{},
		empty: func() runtime.Object {
			list := PL(new(L))
			list.GetObjectKind().SetGroupVersionKind(gvk(apiVersion, name+"List"))
			return list
		},
		blank: func() object {
			o := PT(new(T))
			o.GetObjectKind().SetGroupVersionKind(gvk(apiVersion, name))
			return o
		},
	}
}

func key(o metav1.Object) string { return path.Join(o.GetNamespace(), o.GetName()) }

func (c *collection) put(o object) {
	if i, ok := c.index[key(o)]; ok {
		c.objects[i] = o
		return
	}
	c.index[key(o)] = len(c.objects)
	c.objects = append(c.objects, o)
}

// SetEndpoints replaces the EndpointSlice of that name and tells the watches. It returns the time just before that.
func (s *Server) SetEndpoints(slice *discoveryv1.EndpointSlice) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	slice.ResourceVersion = strconv.FormatInt(s.version, 10)
	c := s.kinds["endpointslices"]
	c.put(slice)
	c.changes = append(c.changes, event{s.version, slice})
	start := time.Now()
	close(s.changed)
	s.changed = make(chan struct{})
	return start
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := newEncoder(r.Header.Get("Accept"))
	resource, name := parse(r.URL.Path)
	c := s.kinds[resource]
	selected := selectedName(r.URL.Query().Get("fieldSelector"))
	switch {
	case r.Method != http.MethodGet || c == nil:
		out.fail(w, fmt.Sprintf("%s %s is not served by the benchmark's API server", r.Method, r.URL.Path))
	case name != "":
		s.get(w, out, c, name)
	case r.URL.Query().Get("watch") != "":
		s.watch(w, r, out, c, selected)
	default:
		s.list(w, out, c, selected)
	}
}

// selectedName is the name in a field selector, if it selects by name. What else kube-proxy selects by leaves out
// Services of kinds that are not here.
func selectedName(selector string) string {
	if name, ok := strings.CutPrefix(selector, "metadata.name="); ok {
		return name
	}
	return ""
}

// parse reads /api/v1/RESOURCE[/NAME] and /apis/GROUP/v1/RESOURCE. Requests in a namespace are for kinds that are empty here.
func parse(url string) (resource, name string) {
	parts := strings.Split(strings.Trim(url, "/"), "/")
	skip := 2
	if parts[0] == "apis" {
		skip = 3
	}
	parts = parts[min(skip, len(parts)):]
	if len(parts) >= 3 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	switch len(parts) {
	case 1:
		return parts[0], ""
	case 2:
		return parts[0], parts[1]
	}
	return "", ""
}

func (s *Server) get(w http.ResponseWriter, out encoder, c *collection, name string) {
	s.mu.Lock()
	i, ok := c.index[name]
	var o object
	if ok {
		o = c.objects[i]
	}
	s.mu.Unlock()
	if !ok {
		out.fail(w, name+" is not found")
		return
	}
	out.answer(w, http.StatusOK, o)
}

// selected are the collection's objects, all or the one of that name, and the version at which they were so.
func (s *Server) selected(c *collection, name string) ([]object, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" {
		return append([]object(nil), c.objects...), s.version
	}
	if i, ok := c.index[name]; ok {
		return []object{c.objects[i]}, s.version
	}
	return nil, s.version
}

// since are the changes after a version, of the object of that name if one is given, and a channel that is closed at the next.
func (s *Server) since(c *collection, version int64, name string) (changes []event, next <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := len(c.changes)
	for first > 0 && c.changes[first-1].version > version {
		first--
	}
	for _, e := range c.changes[first:] {
		if name == "" || e.object.GetName() == name {
			changes = append(changes, e)
		}
	}
	return changes, s.changed
}

// watch streams changes until the client goes away; before them, if that is asked for, what there is (KEP-3157).
func (s *Server) watch(w http.ResponseWriter, r *http.Request, out encoder, c *collection, name string) {
	query := r.URL.Query()
	version, _ := strconv.ParseInt(query.Get("resourceVersion"), 10, 64) // "": from now, as all is asked for, too
	stream := out.stream(w)
	if query.Get("sendInitialEvents") == "true" {
		var all []object
		all, version = s.selected(c, name)
		for _, o := range all {
			stream.send(watch.Added, o)
		}
		stream.send(watch.Bookmark, bookmark(c, version))
	}
	stream.flush()
	for stream.err == nil {
		changes, next := s.since(c, version, name)
		for _, e := range changes {
			stream.send(watch.Modified, e.object)
			version = e.version
		}
		stream.flush()
		select {
		case <-r.Context().Done():
			return
		case <-next:
		}
	}
}

// bookmark says that what there was at a version has been sent.
func bookmark(c *collection, version int64) object {
	o := c.blank()
	o.SetResourceVersion(strconv.FormatInt(version, 10))
	o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return o
}
