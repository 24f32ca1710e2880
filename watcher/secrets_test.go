package watcher

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"sallyport/watcher/objects"
)

// secretsOf are the names and certificates of a source's Secrets, and what is denied.
func secretsOf(s Source) string {
	c, ok := s.Objects()
	if !ok {
		return "not complete"
	}
	var all []string
	for _, o := range c.Secrets {
		all = append(all, o.Name+"="+string(o.Data["tls.crt"]))
	}
	for _, d := range c.Denied {
		all = append(all, "denied "+strings.Trim(d.Kind+" "+d.Namespace+"/"+d.Name, "/ "))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func withSecrets(t *testing.T, s *apiServer, access string) *API {
	t.Helper()
	log, lines := textLog()
	o := testOptions(log)
	o.Secrets = SecretOptions{Access: access, Wanted: wantedSecrets}
	t.Cleanup(func() {
		if strings.Contains(lines.String(), "key") {
			t.Errorf("a key is logged: %s", lines)
		}
	})
	return connect(t, s, o)
}

// TestSecretAccess looks at what an edge asks for, which is what its role must permit, and at what it keeps.
func TestSecretAccess(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		access, want string
		asked        []string
	}{
		{SecretsNone, "", nil},
		{"", "", nil},
		{SecretsNamed, "a=A", []string{"/api/v1/namespaces/shop/secrets metadata.name=a", "/api/v1/namespaces/shop/secrets metadata.name=missing",
			"/api/v1/namespaces/shop/secrets metadata.name=opaque"}},
		{SecretsNamespaces, "a=A", []string{"/api/v1/namespaces/shop/secrets type=kubernetes.io/tls"}},
		{SecretsCluster, "a=A", []string{"/api/v1/secrets type=kubernetes.io/tls"}},
	} {
		t.Run(tt.access, func(t *testing.T) {
			s := newAPIServer(t, "one")
			s.putSecret("a", corev1.SecretTypeTLS, "A")
			s.putSecret("unwanted", corev1.SecretTypeTLS, "U")
			s.putSecret("opaque", corev1.SecretTypeOpaque, "O")
			for _, name := range []string{"a", "opaque", "missing", ""} {
				s.putIngress("ing-"+name, name)
			}
			a := withSecrets(t, s, tt.access)
			eventually(t, start(t, a), "complete", ready(a))
			if got := secretsOf(a); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			asked := slices.DeleteFunc(s.asked(), func(request string) bool { return !strings.Contains(request, "/secrets") })
			if !slices.Equal(asked, tt.asked) {
				t.Errorf("asked for %q, want %q", asked, tt.asked)
			}
			c, _ := a.Objects()
			for _, o := range c.Secrets {
				if len(o.Data) != 2 || o.Labels != nil {
					t.Errorf("more is kept than certificate and key: %v %v", o.Labels, o.Data)
				}
			}
		})
	}
}

// TestSecretsFollow changes what is wanted, what there is, and what is permitted.
func TestSecretsFollow(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	s.putSecret("a", corev1.SecretTypeTLS, "A")
	s.putSecret("b", corev1.SecretTypeTLS, "B")
	s.putIngress("one", "a")
	a := withSecrets(t, s, SecretsNamed)
	changes := start(t, a)
	eventually(t, changes, "complete", ready(a))
	steps := []struct {
		name string
		do   func()
		want string
	}{
		{"as it begins", func() {}, "a=A"},
		{"a certificate is renewed", func() { s.putSecret("a", corev1.SecretTypeTLS, "A2") }, "a=A2"},
		{"another is wanted", func() { s.putIngress("two", "b") }, "a=A2 b=B"},
		{"one that is refused", func() {
			s.change(false, func() { s.refused["secrets/c"] = http.StatusForbidden })
			s.putSecret("c", corev1.SecretTypeTLS, "C")
			s.putIngress("three", "c")
		}, "a=A2 b=B denied Secret shop/c"},
		{"it is permitted", func() { s.change(false, func() { s.refused = map[string]int{} }) }, "a=A2 b=B c=C"},
		{"one is refused that was read", func() { s.change(true, func() { s.refused["secrets/b"] = http.StatusForbidden }) }, "a=A2 b=B c=C denied Secret shop/b"},
		{"it is not wanted any longer", func() { s.putIngress("two", "a") }, "a=A2 c=C"},
	}
	for _, step := range steps {
		step.do()
		eventually(t, changes, step.name+": "+step.want, func() bool { return secretsOf(a) == step.want })
	}
	if h := a.current.Load(); len(h.secrets.watches) != 2 {
		t.Errorf("%d Secrets are being watched, want 2", len(h.secrets.watches))
	}
}

// TestNewIngressWaitsForItsSecret never shows the new Ingress without its Secret, or a client would see another certificate.
func TestNewIngressWaitsForItsSecret(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	s.putSecret("a", corev1.SecretTypeTLS, "A")
	a := withSecrets(t, s, SecretsNamed)
	changes := start(t, a)
	eventually(t, changes, "complete", ready(a))
	s.putIngress("one", "a")
	eventually(t, changes, "the Ingress", func() bool {
		c, ok := a.Objects()
		if ok && len(c.Ingresses) == 1 && len(c.Secrets) != 1 {
			t.Fatal("the Ingress came without its Secret")
		}
		return ok && len(c.Ingresses) == 1
	})
}

// TestSlowSecretHoldsBackForASecond has an API server that never answers for a Secret.
func TestSlowSecretHoldsBackForASecond(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	a := withSecrets(t, s, SecretsNamed)
	changes := start(t, a)
	eventually(t, changes, "complete", ready(a))
	eventually(t, tick(t), "all is being watched", func() bool { return a.Health().Up })
	s.change(false, func() { s.hanging = true })
	s.putIngress("one", "a")
	eventually(t, changes, "held back", func() bool { return !ready(a)() })
	eventually(t, changes, "given up", ready(a))
	if c, _ := a.Objects(); len(c.Ingresses) != 1 || len(c.Secrets) != 0 || len(c.Denied) != 0 {
		t.Errorf("got %+v", c)
	}
}

// TestFirstSecretsAreWaitedFor has no Objects before a Secret was read, however long it takes.
func TestFirstSecretsAreWaitedFor(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	s.putIngress("one", "a")
	s.change(false, func() { s.refused["secrets"] = http.StatusForbidden })
	a := withSecrets(t, s, SecretsCluster)
	a.current.Load().patience = denialPatience
	changes := start(t, a)
	secretIsAsked := func() bool {
		_ = ready(a)()
		return slices.Contains(s.asked(), "/api/v1/secrets type=kubernetes.io/tls")
	}
	eventually(t, changes, "the Secrets are refused", secretIsAsked)
	if ready(a)() {
		t.Error("there are objects before the Secrets were read")
	}
	s.putSecret("a", corev1.SecretTypeTLS, "A")
	s.change(false, func() { s.refused = map[string]int{} })
	eventually(t, changes, "a=A", func() bool { return secretsOf(a) == "a=A" })
}

func TestCoverage(t *testing.T) {
	name := objects.Name{Namespace: "shop", Name: "a"}
	for access, want := range map[string]objects.Name{SecretsNamed: name, SecretsNamespaces: {Namespace: "shop"}, SecretsCluster: {}} {
		if got := coverage(name, access); got != want {
			t.Errorf("%s: got %v, want %v", access, got, want)
		}
	}
}
