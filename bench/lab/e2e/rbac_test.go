package e2e

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"sallyport/bench/lab/cluster"
)

// rbacApp is served to clients of shop.example.com.
func rbacApp() string {
	return app("front") + strings.ReplaceAll(shopIngress, "shop.example.com", "rbac.example.com")
}

// withoutReading says, for each permission of base.yaml, what its absence leaves out, and what an edge then answers to a
// request that is to be served. 200: nothing but the Problem tells.
var withoutReading = map[permission]struct {
	kind string
	code int
}{
	{"list", "services"}:        {"Service", 503},
	{"watch", "services"}:       {"Service", 200}, // changes are not followed
	{"list", "nodes"}:           {"Node", 503},    // no node ports
	{"watch", "nodes"}:          {"Node", 200},
	{"list", "namespaces"}:      {"Namespace", 200}, // another cluster's objects are not told from this one's
	{"watch", "namespaces"}:     {"Namespace", 200},
	{"list", "endpointslices"}:  {"EndpointSlice", 503},
	{"watch", "endpointslices"}: {"EndpointSlice", 200},
	{"list", "ingresses"}:       {"Ingress", 404},
	{"watch", "ingresses"}:      {"Ingress", 200},
	{"list", "ingressclasses"}:  {"IngressClass", 404}, // no Ingress is ours
	{"watch", "ingressclasses"}: {"IngressClass", 200},
}

// TestEachVerbOfReadingIsNeeded runs an edge without each permission of base.yaml.
func TestEachVerbOfReadingIsNeeded(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.Apply(t, ns, rbacApp())
	s.WaitReady(t, ns, "front", 3)
	var accounts []*account
	for i, p := range append(permissionsOf(t, "base.yaml"), complete) {
		a := s.newAccount(t, i, ns, p, "base.yaml")
		a.start(t, s, false, "status: {enabled: false}")
		accounts = append(accounts, a)
	}
	for _, a := range accounts {
		t.Run(a.without.String(), func(t *testing.T) {
			if a.without == complete {
				cluster.Eventually(t, 20*time.Second, func() error { return a.serves(s, "rbac.example.com", 200) })
				return
			}
			want, known := withoutReading[a.without]
			if !known {
				t.Fatal("the test does not know what this verb is for")
			}
			cluster.Eventually(t, 30*time.Second, func() error {
				return errors.Join(a.says(t, "field="+want.kind+" reason=KindForbidden"), a.serves(s, "rbac.example.com", want.code))
			})
			if missing := "missing: it may not " + a.without.String() + ":"; !strings.Contains(a.notes, missing) {
				t.Errorf("sallyport kubeconfig said %q, want %q", a.notes, missing)
			}
		})
	}
}

// statusApp has what an edge writes to: a Service and an Ingress that get addresses, and an Ingress with a Problem.
func (s *site) statusApp(i int) string {
	return strings.NewReplacer("NAME", fmt.Sprintf("status-%d", i), "VIP", s.vip(40+i).String()).Replace(`
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {type: LoadBalancer, loadBalancerIP: VIP, selector: {app: front}, ports: [{port: 80, targetPort: 9376}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: NAME}
spec:
  ingressClassName: sallyport
  rules:
  - host: NAME.example.com
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: NAME, port: {number: 80}}}}
      - {path: /no, pathType: Prefix, backend: {service: {name: nowhere, port: {number: 80}}}}
`)
}

// wantWritten is nil when the objects of statusApp named first are written (the Service's address, the Ingress', its
// Event), and those named second are not.
func (s *site) wantWritten(t *testing.T, ns string, i int, written, missing string) error {
	t.Helper()
	name := fmt.Sprintf("status-%d", i)
	address := func(kind string) bool {
		return s.Kubectl(t, "get", kind+"/"+name, "-n", ns, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}") != ""
	}
	for what, there := range map[string]bool{"service": address("service"), "ingress": address("ingress"),
		"event": s.wantOneEvent(t, ns, name, "ServiceNotFound") == nil} {
		if there && strings.Contains(missing, what) || !there && strings.Contains(written, what) {
			return fmt.Errorf("%s: written %t", what, there)
		}
	}
	return nil
}

// withoutWriting says, for each permission of status.yaml, which resource the Problem names, and what is written all the
// same and what is not.
var withoutWriting = map[permission]struct{ resource, written, missing string }{
	{"patch", "services/status"}:  {"services/status", "ingress, event", "service"},
	{"patch", "ingresses/status"}: {"ingresses/status", "service, event", "ingress"},
	{"create", "events"}:          {"events", "service, ingress", "event"},
	{"patch", "events"}:           {"events", "service, ingress", ""}, // those of before are not renewed
	{"get", "leases"}:             {"leases", "", "service, ingress, event"},
	{"create", "leases"}:          {"leases", "", "service, ingress, event"},
	{"update", "leases"}:          {"leases", "service, ingress, event", ""}, // until the term is over
}

// TestEachVerbOfWritingIsNeeded runs an edge without each permission of status.yaml, one after another.
func TestEachVerbOfWritingIsNeeded(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	s.holdLease(t)
	for i, p := range append([]permission{complete}, permissionsOf(t, "status.yaml")...) {
		t.Run(p.String(), func(t *testing.T) {
			want, known := withoutWriting[p]
			if p == complete {
				want.written = "service, ingress, event"
			} else if !known {
				t.Fatal("the test does not know what this verb is for")
			}
			s.Apply(t, ns, s.statusApp(i))
			a := s.newAccount(t, i, ns, p, "base.yaml", "status.yaml")
			a.start(t, s, true, s.statusConfig(a))
			if p != complete {
				cluster.Eventually(t, 20*time.Second, func() error {
					return a.says(t, "field="+want.resource+" reason=StatusForbidden")
				})
			}
			cluster.Eventually(t, 20*time.Second, func() error {
				return s.wantWritten(t, ns, i, want.written, want.missing)
			})
		})
	}
}

// statusConfig has the account's own Lease.
func (s *site) statusConfig(a *account) string {
	return fmt.Sprintf("status: {leaseNamespace: %s, ingressAddresses: [192.0.2.80]}\nloadBalancer: {ipAddressPools: [{name: lab, addresses: [%q]}]}", a.name, s.Pool())
}

// holdLease keeps the site's edges from writing during the test.
func (s *site) holdLease(t *testing.T) {
	t.Helper()
	leases := s.Client().CoordinationV1().Leases("sallyport")
	cluster.Eventually(t, 20*time.Second, func() error {
		l, err := leases.Get(t.Context(), "sallyport", metav1.GetOptions{})
		if err != nil {
			return err
		}
		holder, now, long := "nobody", metav1.NowMicro(), int32(3600)
		l.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &long, AcquireTime: &now, RenewTime: &now}
		_, err = leases.Update(t.Context(), l, metav1.UpdateOptions{})
		return err
	})
	t.Cleanup(func() {
		if err := leases.Delete(context.WithoutCancel(t.Context()), "sallyport", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	for _, e := range s.edges {
		cluster.Eventually(t, 30*time.Second, func() error {
			metrics, err := e.admin("/metrics")
			if err == nil && !strings.Contains(metrics, "\nsallyport_status_leader 0\n") {
				err = fmt.Errorf("%s writes yet", e.host.Name)
			}
			return err
		})
	}
}

// TestEachVerbOfSecretsIsNeeded runs an edge without each permission of the files for Secrets, which all have the same.
func TestEachVerbOfSecretsIsNeeded(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	authority := newAuthority(t)
	secret, _ := authority.secret(t, "shop-tls", "rbac-tls.example.com")
	s.Apply(t, ns, app("one")+secret+tlsIngress)
	s.WaitReady(t, ns, "one", 3)
	i := 0
	for _, access := range []string{"named", "namespaces", "cluster"} {
		file := "secrets-" + access + ".yaml"
		for _, p := range append(permissionsOf(t, file), complete) {
			a := s.newAccount(t, i, ns, p, "base.yaml", file)
			i++
			a.start(t, s, false, "status: {enabled: false}\nclusters: [{secrets: "+access+"}]")
			t.Run(access+" "+p.String(), func(t *testing.T) {
				cluster.Eventually(t, 30*time.Second, func() error {
					presented := a.handshake(s, authority, "rbac-tls.example.com")
					switch {
					case p == complete:
						return presented
					case p.verb == "list" && presented == nil:
						return errors.New("the certificate is presented, whose Secret the edge may not read")
					}
					return a.says(t, "kind denied", "kind=Secret", "cannot "+p.verb)
				})
			})
		}
	}
}

const tlsIngress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: secure}
spec:
  ingressClassName: sallyport
  tls: [{hosts: [rbac-tls.example.com], secretName: shop-tls}]
  rules:
  - host: rbac-tls.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: one, port: {number: 80}}}}]}
---
`

// handshake is nil when the edge presents the authority's certificate.
func (a *account) handshake(s *site, authority *authority, host string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := s.Host("edge-3").DialContext(ctx, "tcp", a.addr+":443")
	if err != nil {
		return err
	}
	defer c.Close()
	return tls.Client(c, &tls.Config{ServerName: host, RootCAs: authority.pool()}).HandshakeContext(ctx)
}

// A recorder stands between an edge and the API server and keeps what the edge asks for.
type recorder struct {
	proxy *httputil.ReverseProxy

	mu    sync.Mutex
	asked map[string]bool // permissions
}

// ServeHTTP passes the request on.
func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.asked[permissionFor(req).String()] = true
	r.mu.Unlock()
	r.proxy.ServeHTTP(w, req)
}

// permissionFor is the permission that a request needs, by the rules of the API server's RequestInfo.
func permissionFor(r *http.Request) permission {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if path[0] != "api" && path[0] != "apis" || len(path) < 3 {
		return permission{strings.ToLower(r.Method), r.URL.Path}
	}
	path = path[map[string]int{"api": 2, "apis": 3}[path[0]]:] // without group and version
	if path[0] == "namespaces" && len(path) > 2 {
		path = path[2:]
	}
	verb := map[string]string{http.MethodGet: "get", http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[r.Method]
	switch {
	case verb == "get" && len(path) == 1 && r.URL.Query().Get("watch") != "":
		verb = "watch"
	case verb == "get" && len(path) == 1:
		verb = "list"
	}
	resource := path[0]
	if len(path) > 2 {
		resource += "/" + path[2]
	}
	return permission{verb, resource}
}

// record puts a recorder before the API server of the account's kubeconfig.
func (s *site) record(t *testing.T, a *account) *recorder {
	t.Helper()
	config := rest.AnonymousClientConfig(s.RESTConfig()) // the edge's own token is passed on
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	api, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(api)
	proxy.Transport, proxy.FlushInterval = transport, -1
	r := &recorder{proxy: proxy, asked: map[string]bool{}}
	var listener net.Listener
	err = s.Host("edge-3").Do(func() (err error) {
		listener, err = net.Listen("tcp", a.addr+":6443")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(r)
	err = server.Listener.Close()
	server.Listener = listener
	server.StartTLS() // without TLS no token is sent
	t.Cleanup(server.Close)
	kubeconfig, failed := clientcmd.LoadFromFile(a.kubeconfig)
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for _, c := range kubeconfig.Clusters {
		c.Server, c.CertificateAuthorityData, c.TLSServerName = server.URL, ca, server.Certificate().DNSNames[0]
	}
	if err := clientcmd.WriteToFile(*kubeconfig, a.kubeconfig); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestEdgesAskForWhatTheRolesGrant compares what edges ask of the API server with the roles: every request is granted, and
// every permission is used.
func TestEdgesAskForWhatTheRolesGrant(t *testing.T) {
	s := theSite(t)
	ns := s.Namespace(t)
	secret, _ := newAuthority(t).secret(t, "shop-tls", "rbac-tls.example.com")
	s.Apply(t, ns, app("one")+secret+tlsIngress+s.statusApp(20))
	cluster.Eventually(t, 20*time.Second, func() error { return s.wantOneEvent(t, ns, "status-20", "ServiceNotFound") }) // to be renewed
	s.holdLease(t)
	s.Apply(t, ns, s.statusApp(21))
	for i, access := range []string{"named", "namespaces", "cluster"} {
		t.Run(access, func(t *testing.T) {
			files := []string{"base.yaml", "status.yaml", "secrets-" + access + ".yaml"}
			want := map[string]bool{}
			for _, p := range permissionsOf(t, files...) {
				want[p.String()] = true
			}
			s.Apply(t, ns, s.statusApp(22+i))
			a := s.newAccount(t, i, ns, complete, files...)
			r := s.record(t, a)
			a.start(t, s, false, s.statusConfig(a)+"\nclusters: [{secrets: "+access+"}]")
			cluster.Eventually(t, 30*time.Second, func() error {
				r.mu.Lock()
				defer r.mu.Unlock()
				if !maps.Equal(r.asked, want) {
					return fmt.Errorf("the edge asks for\n%v\nand the roles grant\n%v", slices.Sorted(maps.Keys(r.asked)), slices.Sorted(maps.Keys(want)))
				}
				return nil
			})
			if err := a.says(t, "Forbidden"); err == nil {
				t.Error("something was refused")
			}
		})
	}
}
