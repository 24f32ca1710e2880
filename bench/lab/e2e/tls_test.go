package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"sallyport/bench/lab/cluster"
)

const secureIngress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: secure}
spec:
  ingressClassName: sallyport
  tls:
  - {hosts: [one.SITE], secretName: one}
  - {hosts: ["*.wild.SITE"], secretName: wild}
  rules:
  - host: one.SITE
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: one, port: {number: 80}}}}]}
  - host: "*.wild.SITE"
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: two, port: {number: 80}}}}]}
---
`

// getTLS requests https://addr/ from the client with host as the name of the server.
func (s *site) getTLS(e *edge, host string, roots *x509.CertPool) (a answer, serial int64) {
	client := s.client().HTTPClient()
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{ServerName: host, RootCAs: roots, InsecureSkipVerify: roots == nil} //nolint:gosec // the fallback certificate
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://%s/", e.host.Addr), nil)
	if err != nil {
		return answer{err: err}, 0
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}, 0
	}
	defer resp.Body.Close()
	body := make([]byte, 100)
	n, _ := resp.Body.Read(body)
	return answer{resp.StatusCode, string(body[:n]), nil}, resp.TLS.PeerCertificates[0].SerialNumber.Int64()
}

// secureApp serves one.SITE and *.wild.SITE by TLS, SITE being site; the edges may read its two Secrets and no other. Each
// test needs a site of its own: the objects of the last one are going away yet.
func (s *site) secureApp(t *testing.T, a *authority, site string) (ns string) {
	ns = s.Namespace(t)
	s.permitSecrets(t, ns, "one", "wild")
	one, _ := a.secret(t, "one", "one."+site)
	wild, _ := a.secret(t, "wild", "*.wild."+site)
	s.Apply(t, ns, app("one")+app("two")+one+wild+strings.ReplaceAll(secureIngress, "SITE", site))
	s.WaitReady(t, ns, "one", 3)
	s.WaitReady(t, ns, "two", 3)
	return ns
}

func TestTLSByHost(t *testing.T) {
	s := theSite(t)
	a := newAuthority(t)
	s.secureApp(t, a, "hosts.example.com")
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		for host, pod := range map[string]string{"one.hosts.example.com": "one-", "shop.wild.hosts.example.com": "two-", "SHOP2.Wild.hosts.example.com": "two-"} {
			cluster.Eventually(t, 10*time.Second, func() error {
				got, _ := s.getTLS(e, host, a.pool())
				if got.err != nil || got.code != 200 || !strings.HasPrefix(got.body, pod) {
					return fmt.Errorf("https://%s: %d %q %v, want 200 from %s", host, got.code, got.body, got.err, pod)
				}
				return nil
			})
		}
		if got := get(s.client(), e.url(80)+"a?b=c", "one.hosts.example.com"); got.code != http.StatusPermanentRedirect {
			t.Errorf("in clear: %d %v, want 308", got.code, got.err)
		}
		if got, _ := s.getTLS(e, "other.example.com", nil); got.err != nil || got.code != 404 {
			t.Errorf("a host that nobody serves, with the fallback certificate: %d %v, want 404", got.code, got.err)
		}
		if got, _ := s.getTLS(e, "other.example.com", a.pool()); got.err == nil {
			t.Errorf("a host that nobody serves got a certificate of the authority")
		}
	})
}

// TestSecretThatMayNotBeReadHarmsNoOther has an Ingress with a Secret that the edges' account may not read.
func TestSecretThatMayNotBeReadHarmsNoOther(t *testing.T) {
	s := theSite(t)
	a := newAuthority(t)
	ns := s.secureApp(t, a, "refused.example.com")
	private, _ := a.secret(t, "private", "private.example.com")
	s.Apply(t, ns, private+strings.NewReplacer("name: secure", "name: private", "one.SITE", "private.example.com",
		"secretName: one", "secretName: private", "SITE", "private.example.com").Replace(secureIngress))
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 20*time.Second, func() error {
			for line := range strings.Lines(e.log()) {
				if strings.Contains(line, "SecretForbidden") && strings.Contains(line, ns+"/private") {
					return nil
				}
			}
			return fmt.Errorf("the log does not name the Secret")
		})
		cluster.Eventually(t, 5*time.Second, func() error {
			if got, _ := s.getTLS(e, "private.example.com", nil); got.err != nil || got.code != 200 {
				return fmt.Errorf("the host is not served with the fallback certificate: %d %w", got.code, got.err)
			}
			return nil
		})
		if got, _ := s.getTLS(e, "one.refused.example.com", a.pool()); got.err != nil || got.code != 200 {
			t.Errorf("the neighbour is hurt: %d %v", got.code, got.err)
		}
	})
	s.permitSecrets(t, ns, "one", "wild", "private")
	s.onEachEdge(t, func(t *testing.T, e *edge) {
		cluster.Eventually(t, 90*time.Second, func() error {
			got, _ := s.getTLS(e, "private.example.com", a.pool())
			return got.err
		})
	})
}

// TestRotationUnderLoad replaces a certificate many times while clients connect and request.
func TestRotationUnderLoad(t *testing.T) {
	s := theSite(t)
	a := newAuthority(t)
	ns := s.secureApp(t, a, "rotation.example.com")
	e := s.edges[0]
	host := "one.rotation.example.com"
	const wild = "a.wild.rotation.example.com"
	for _, h := range []string{host, wild} {
		cluster.Eventually(t, 10*time.Second, func() error {
			if got, _ := s.getTLS(e, h, a.pool()); got.err != nil || got.code != 200 {
				return fmt.Errorf("%s is not served: %d %w", h, got.code, got.err)
			}
			return nil
		})
	}
	l := s.load(t, e, target{host: host, roots: a.pool()}, target{host: wild, roots: a.pool()})
	for range 20 {
		manifest, serial := a.secret(t, "one", host)
		s.Apply(t, ns, manifest)
		cluster.Eventually(t, 10*time.Second, func() error {
			if got, now := s.getTLS(e, host, a.pool()); got.err != nil || now != serial {
				return fmt.Errorf("certificate %d is presented, want %d: %v", now, serial, got.err)
			}
			return nil
		})
	}
	l.stop(t, 500)
}

// TestKeysAreNotTold looks for a private key, and for the edge's token, in everything that an edge says.
func TestKeysAreNotTold(t *testing.T) {
	s := theSite(t)
	a := newAuthority(t)
	ns := s.secureApp(t, a, "told.example.com")
	e := s.startEdge3(t, "")
	cluster.Eventually(t, 10*time.Second, func() error { got, _ := s.getTLS(e, "one.told.example.com", a.pool()); return got.err })
	config, err := clientcmd.LoadFromFile(s.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	key := s.Kubectl(t, "get", "secret/one", "-n", ns, "-o", `jsonpath={.data.tls\.key}`)
	pem, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Split(string(pem), "\n")[1] // the first line between the armour
	kept, err := os.ReadFile(e.file("state/objects.yaml"))
	if err != nil || !strings.Contains(string(kept), key) {
		t.Errorf("the last-good file does not have the key, so it would not be found elsewhere either: %v", err)
	}
	metrics, err := e.admin("/metrics")
	if err != nil {
		t.Error(err)
	}
	snapshot, err := e.host.Command(t.Context(), "curl", "-sS", "--unix-socket", "/run/sallyport/admin.sock", "http://sallyport/v1/snapshot").CombinedOutput()
	if err != nil || !strings.Contains(string(snapshot), "one.told.example.com") {
		t.Errorf("no snapshot: %v: %s", err, snapshot)
	}
	for what, text := range map[string]string{
		"log": e.log(), "metrics": metrics, "snapshot": string(snapshot),
		"status": e.run(t, "status", "-o", "json"), "explain": e.run(t, "explain", "https://one.told.example.com/", "-o", "json"),
		"render": e.run(t, "render", "-f", e.file("state/objects.yaml")), "render -o json": e.run(t, "render", "-o", "json", "-f", e.file("state/objects.yaml")),
	} {
		for name, secret := range map[string]string{"key": body, "encoded key": key[:60], "token": config.AuthInfos["edge"].Token} {
			if secret == "" || strings.Contains(text, secret) {
				t.Errorf("%s tells the %s", what, name)
			}
		}
	}
}
