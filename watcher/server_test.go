package watcher

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"sallyport/watcher/objects"
)

// An apiServer answers lists and watches as an API server does that has no streaming lists, over HTTP and in JSON, and
// fails in the ways that one fails.
type apiServer struct {
	*httptest.Server

	mu       sync.Mutex
	objects  map[string]map[string]metav1.Object // by resource and "namespace/name"
	version  int
	watches  map[chan struct{}]bool
	requests []string // path and field selector
	away     bool     // cuts connections without an answer
	hanging  bool     // does not answer
	token    string   // that requests must have, if not empty
	refused  map[string]int
}

// newAPIServer starts a server of a cluster whose namespace kube-system has that UID.
func newAPIServer(t *testing.T, uid string) *apiServer {
	s := &apiServer{objects: map[string]map[string]metav1.Object{}, watches: map[chan struct{}]bool{}, refused: map[string]int{}}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	s.become(uid)
	return s
}

// change changes the server's state, cuts all connections if that is asked for, and wakes the watches.
func (s *apiServer) change(cut bool, change func()) {
	s.mu.Lock()
	change()
	s.version++
	for w := range s.watches {
		select {
		case w <- struct{}{}:
		default:
		}
	}
	s.mu.Unlock()
	if cut {
		s.CloseClientConnections()
	}
}

func (s *apiServer) put(resource string, o metav1.Object) {
	s.change(false, func() {
		if s.objects[resource] == nil {
			s.objects[resource] = map[string]metav1.Object{}
		}
		o.SetResourceVersion(fmt.Sprint(s.version + 1))
		s.objects[resource][path.Join(o.GetNamespace(), o.GetName())] = o
	})
}

// become makes the server another cluster's.
func (s *apiServer) become(uid string) {
	s.put("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: types.UID(uid)}})
}

func (s *apiServer) putService(name string) {
	s.put("services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)}})
}

func (s *apiServer) putIngress(name, secret string) {
	s.put("ingresses", &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: networkingv1.IngressSpec{TLS: []networkingv1.IngressTLS{{SecretName: secret}}}})
}

func (s *apiServer) putSecret(name string, kind corev1.SecretType, certificate string) {
	s.put("secrets", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"a": "b"}}, Type: kind,
		Data: map[string][]byte{"tls.crt": []byte(certificate), "tls.key": []byte("key"), "ca.crt": []byte("ca")}})
}

// asked returns the requests since the last call, without repeats.
func (s *apiServer) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.requests
	s.requests = nil
	slices.Sort(all)
	return slices.Compact(all)
}

// ServeHTTP answers a request.
func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource, query := path.Base(r.URL.Path), r.URL.Query()
	s.mu.Lock()
	s.requests = append(s.requests, strings.TrimSpace(r.URL.Path+" "+query.Get("fieldSelector")))
	away, hanging, token, code := s.away, s.hanging, s.token, s.refused[resource]
	s.mu.Unlock()
	if named, ok := strings.CutPrefix(query.Get("fieldSelector"), "metadata.name="); ok && code == 0 {
		s.mu.Lock()
		code = s.refused[resource+"/"+named]
		s.mu.Unlock()
	}
	switch {
	case away:
		panic(http.ErrAbortHandler)
	case hanging:
		<-r.Context().Done()
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		fail(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
	case code == http.StatusForbidden:
		fail(w, code, metav1.StatusReasonForbidden)
	case code != 0:
		fail(w, code, metav1.StatusReasonNotFound)
	case query.Get("sendInitialEvents") != "":
		fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case query.Get("watch") != "":
		s.watch(w, r)
	default:
		answer(w, s.list(r))
	}
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	answer(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: string(reason)})
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

// kindsOf are the API versions and kinds of resources.
var kindsOf = map[string][2]string{
	"namespaces": {"v1", "Namespace"}, "nodes": {"v1", "Node"}, "services": {"v1", "Service"}, "secrets": {"v1", "Secret"},
	"endpointslices": {"discovery.k8s.io/v1", "EndpointSlice"}, "ingresses": {"networking.k8s.io/v1", "Ingress"}, "ingressclasses": {"networking.k8s.io/v1", "IngressClass"},
}

func (s *apiServer) list(r *http.Request) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := kindsOf[path.Base(r.URL.Path)]
	return map[string]any{"apiVersion": kind[0], "kind": kind[1] + "List", "metadata": map[string]any{"resourceVersion": fmt.Sprint(s.version)}, "items": s.matching(r)}
}

// matching are the objects that a request is about, by its field selector and namespace.
func (s *apiServer) matching(r *http.Request) []metav1.Object {
	all := []metav1.Object{}
	for _, o := range s.objects[path.Base(r.URL.Path)] {
		selected := true
		switch key, value, _ := strings.Cut(r.URL.Query().Get("fieldSelector"), "="); key {
		case "metadata.name":
			selected = o.GetName() == value
		case "type":
			selected = string(o.(*corev1.Secret).Type) == value
		}
		if selected && (!strings.Contains(r.URL.Path, "/namespaces/") || strings.Contains(r.URL.Path, "/namespaces/"+o.GetNamespace()+"/")) {
			all = append(all, o)
		}
	}
	return all
}

// watch sends what changes after the version that the request names. It knows no deletions.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	s.mu.Lock()
	s.watches[wake] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watches, wake)
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	var sent int
	_, _ = fmt.Sscan(r.URL.Query().Get("resourceVersion"), &sent)
	for {
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-wake:
		}
		s.mu.Lock()
		for _, o := range s.matching(r) {
			var version int
			_, _ = fmt.Sscan(o.GetResourceVersion(), &version)
			if version > sent {
				_ = json.NewEncoder(w).Encode(map[string]any{"type": "MODIFIED", "object": withKind(o, kindsOf[path.Base(r.URL.Path)])})
			}
		}
		sent = s.version
		s.mu.Unlock()
	}
}

// withKind gives the object with its kind, which watch events must have.
func withKind(o metav1.Object, kind [2]string) any {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		panic(err)
	}
	fields["apiVersion"], fields["kind"] = kind[0], kind[1]
	return fields
}

// wantedSecrets are those that Ingresses name.
func wantedSecrets(c objects.Cluster) []objects.Name {
	var all []objects.Name
	for _, ing := range c.Ingresses {
		for _, t := range ing.Spec.TLS {
			all = append(all, objects.Name{Namespace: ing.Namespace, Name: t.SecretName})
		}
	}
	return all
}

// connect returns the source of a server's cluster, not started.
func connect(t *testing.T, s *apiServer, o Options) *API {
	t.Helper()
	a, err := NewAPI(&rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, o)
	if err != nil {
		t.Fatal(err)
	}
	a.current.Load().patience = 0
	return a
}

// followKubeconfig writes a kubeconfig for a server, and returns the options to follow it.
func followKubeconfig(t *testing.T, o Options) (Options, func(s *apiServer, token string) *rest.Config) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	o.Kubeconfig = &KubeconfigLocation{Path: file}
	return o, func(s *apiServer, token string) *rest.Config {
		write(t, file, fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: %q, insecure-skip-tls-verify: true}}]\n"+
			"users: [{name: a, user: {token: %s}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n", s.URL, token))
		c, _, err := Kubeconfig(file, "")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// stopped runs a source until ok holds, and stops it.
func stopped(t *testing.T, s Source, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func() {}) }()
	eventually(t, tick(t), what, ok)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
