package watcher

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TestAPIOutage has the API server go away for a while.
func TestAPIOutage(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	s.putService("a")
	log, lines := textLog()
	a := connect(t, s, testOptions(log))
	changes := start(t, a)
	eventually(t, changes, "a", func() bool { return names(a) == "a" })
	eventually(t, tick(t), "up", func() bool { return a.Health().Up })
	contact := a.Health().LastContact

	s.change(true, func() { s.away = true })
	eventually(t, changes, "down", func() bool { h := a.Health(); return !h.Up && h.LastError != "" })
	if names(a) != "a" {
		t.Errorf("the objects are gone: %q", names(a))
	}
	if c, _ := a.Objects(); c.Stale || c.Conflict != "" || len(c.Denied) > 0 {
		t.Errorf("an outage is nothing of these: %+v", c)
	}

	s.putService("b")
	s.change(false, func() { s.away = false })
	eventually(t, changes, "a b", func() bool { return names(a) == "a b" })
	eventually(t, tick(t), "up again", func() bool { h := a.Health(); return h.Up && h.LastError == "" && h.LastContact.After(contact) })
	if n := strings.Count(lines.String(), "\n"); n != 2 {
		t.Errorf("want one line for the outage and one for its end: %s", lines)
	}
}

// TestAPIRejectedCredentials has a token end, and another one come in the kubeconfig.
func TestAPIRejectedCredentials(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	s.token = "first"
	s.putService("a")
	registry := prometheus.NewRegistry()
	log, lines := textLog()
	o := testOptions(log)
	o.Metrics = NewMetrics(registry)
	o, kubeconfig := followKubeconfig(t, o)
	a, err := NewAPI(kubeconfig(s, "first"), o)
	if err != nil {
		t.Fatal(err)
	}
	changes := start(t, a)
	eventually(t, changes, "a", func() bool { return names(a) == "a" })

	s.change(true, func() { s.token = "second" })
	s.putService("b")
	eventually(t, changes, "rejected", func() bool { h := a.Health(); return !h.Up && strings.Contains(h.LastError, "Unauthorized") })
	if got := names(a); got != "a" {
		t.Errorf("got %q", got)
	}
	if counted(t, registry, "sallyport_api_requests_failed_total") == 0 {
		t.Error("no failed request was counted")
	}

	write(t, o.Kubeconfig.Path, "a: [")
	eventually(t, tick(t), "the broken kubeconfig is logged", func() bool { return strings.Contains(lines.String(), "cannot be used, the connection stays") })
	kubeconfig(s, "second")
	eventually(t, changes, "a b", func() bool { return names(a) == "a b" })
	eventually(t, tick(t), "up", func() bool { return a.Health().Up })
	if n := strings.Count(lines.String(), "credentials rejected"); n != 1 {
		t.Errorf("the rejection is logged %d times: %s", n, lines)
	}
	if strings.Contains(lines.String(), "second") {
		t.Errorf("the token is logged: %s", lines)
	}
}

// TestAPIRoleTakenAway refuses a kind that was read: what was read stays, and it heals.
func TestAPIRoleTakenAway(t *testing.T) {
	t.Parallel()
	for _, code := range []int{http.StatusForbidden, http.StatusNotFound} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			t.Parallel()
			s := newAPIServer(t, "one")
			s.putService("a")
			log, _ := textLog()
			a := connect(t, s, testOptions(log))
			changes := start(t, a)
			eventually(t, changes, "a", func() bool { return names(a) == "a" })

			s.change(true, func() { s.refused["services"] = code })
			eventually(t, changes, "denied", func() bool {
				c, _ := a.Objects()
				return len(c.Denied) == 1 && c.Denied[0].Kind == "Service" && c.Denied[0].Code == code
			})
			if got := names(a); got != "a" {
				t.Errorf("got %q", got)
			}
			s.put("nodes", &corev1.Node{})
			s.change(false, func() { s.refused = map[string]int{} })
			s.putService("b")
			eventually(t, changes, "permitted", func() bool { c, _ := a.Objects(); return len(c.Denied) == 0 && names(a) == "a b" })
		})
	}
}

// TestAPIOtherCluster has the API server become another cluster's: nothing of it may be read, because what each kind
// says would come at another time.
func TestAPIOtherCluster(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	s.putService("a")
	log, lines := textLog()
	a := connect(t, s, testOptions(log))
	changes := start(t, a)
	eventually(t, tick(t), "a", func() bool { return names(a) == "a" && a.Health().Up })

	s.change(true, func() { s.away = true })
	eventually(t, changes, "away", func() bool { return !a.Health().Up })
	s.become("two")
	s.putService("b")
	s.change(false, func() { s.away = false })
	eventually(t, changes, "conflict", func() bool {
		c, _ := a.Objects()
		return c.Stale && strings.Contains(c.Conflict, "UID two, ours has one")
	})
	expectNoAnswer(t, a)
	if got := names(a); got != "a" {
		t.Errorf("got %q", got)
	}
	if n := strings.Count(lines.String(), "API server of another cluster"); n != 1 {
		t.Errorf("it is logged %d times: %s", n, lines)
	}
	s.become("one")
	eventually(t, changes, "no conflict", func() bool { c, _ := a.Objects(); return !c.Stale && c.Conflict == "" && names(a) == "a b" })
}

// TestAPIOtherClusterThroughOpenConnections has it become another cluster's without a connection that ends: nothing is
// handed out of what came, and what is handed out later is read anew.
func TestAPIOtherClusterThroughOpenConnections(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	s.putService("a")
	log, lines := textLog()
	a := connect(t, s, testOptions(log))
	changes := start(t, a)
	eventually(t, tick(t), "a", func() bool { return names(a) == "a" && a.Health().Up })
	s.become("two")
	s.putService("b")
	eventually(t, changes, "nothing is handed out", func() bool { return !ready(a)() })
	eventually(t, tick(t), "it is told", func() bool { return strings.Contains(a.Health().LastError, "another cluster") })
	s.change(false, func() { delete(s.objects["services"], "shop/b") })
	s.become("one")
	eventually(t, tick(t), "a", func() bool { return names(a) == "a" && a.Health().Up })
	if n := strings.Count(lines.String(), "came through"); n != 1 {
		t.Errorf("it is logged %d times: %s", n, lines)
	}
}

// expectNoAnswer has another client of the API ask for something.
func expectNoAnswer(t *testing.T, a *API) {
	t.Helper()
	config, err := a.Client()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// TestKubeconfigOfOtherCluster puts another cluster into the kubeconfig: the old connection stays, and it is told.
func TestKubeconfigOfOtherCluster(t *testing.T) {
	t.Parallel()
	one, two, same := newAPIServer(t, "one"), newAPIServer(t, "two"), newAPIServer(t, "one")
	one.putService("a")
	same.putService("c")
	log, _ := textLog()
	o, kubeconfig := followKubeconfig(t, testOptions(log))
	a, err := NewAPI(kubeconfig(one, "t"), o)
	if err != nil {
		t.Fatal(err)
	}
	changes := start(t, a)
	eventually(t, changes, "a", func() bool { return names(a) == "a" })
	kubeconfig(two, "t")
	eventually(t, changes, "conflict", func() bool { c, _ := a.Objects(); return strings.Contains(c.Conflict, "UID two") && !c.Stale })
	if h := a.Health(); !h.Up || !strings.Contains(h.LastError, "kubeconfig has changed") {
		t.Errorf("got %+v", h)
	}
	one.putService("b")
	eventually(t, changes, "a b", func() bool { return names(a) == "a b" })
	kubeconfig(same, "t")
	eventually(t, changes, "c", func() bool { c, _ := a.Objects(); return names(a) == "c" && c.Conflict == "" })
	if got := a.UID("Service", "shop", "c"); got != "uid-c" {
		t.Errorf("got UID %q", got)
	}
	if got := a.UID("Service", "shop", "a"); got != "" {
		t.Errorf("got UID %q of an object that is not there", got)
	}
}

// TestKubeconfigThatPermitsLess changes the credentials for some that may not read Services: none may be lost.
func TestKubeconfigThatPermitsLess(t *testing.T) {
	t.Parallel()
	one, less := newAPIServer(t, "one"), newAPIServer(t, "one")
	one.putService("a")
	less.putService("b")
	less.change(false, func() { less.refused["services"] = http.StatusForbidden })
	log, _ := textLog()
	o, kubeconfig := followKubeconfig(t, testOptions(log))
	a, err := NewAPI(kubeconfig(one, "t"), o)
	if err != nil {
		t.Fatal(err)
	}
	a.current.Load().patience = 0
	changes := start(t, a)
	eventually(t, changes, "a", func() bool { return names(a) == "a" })
	kubeconfig(less, "t")
	eventually(t, tick(t), "the reason", func() bool {
		return strings.HasSuffix(a.Health().LastError, "the new credentials may not read Service")
	})
	if got := names(a); got != "a" {
		t.Errorf("got %q", got)
	}
	less.change(false, func() { less.refused = map[string]int{} })
	eventually(t, changes, "b", func() bool { return names(a) == "b" })
}

func TestSecondsAreUnixTime(t *testing.T) {
	if got := seconds(time.UnixMilli(1500)); got != 1.5 {
		t.Errorf("got %v", got)
	}
}
