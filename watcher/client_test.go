package watcher

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestClientFollowsTheConnection changes server, path and token between two requests of one client.
func TestClientFollowsTheConnection(t *testing.T) {
	var seen []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Host+r.URL.Path+" "+r.Header.Get("Authorization"))
		_, _ = io.WriteString(w, "{}")
	}))
	defer server.Close()
	other := httptest.NewServer(server.Config.Handler)
	defer other.Close()
	a, err := NewAPI(&rest.Config{Host: server.URL, BearerToken: "old"}, testOptions(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	config, err := a.Client()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	version := func() {
		a.current.Load().gate.pass()
		if _, err := client.Discovery().ServerVersion(); err != nil {
			t.Fatal(err)
		}
	}
	version()
	next, err := newConnection(&rest.Config{Host: other.URL + "/k8s/clusters/c-1/", BearerToken: "new"}, a.o, a.identity)
	if err != nil {
		t.Fatal(err)
	}
	a.use(next)
	version()
	want := []string{server.Listener.Addr().String() + "/version Bearer old", other.Listener.Addr().String() + "/k8s/clusters/c-1/version Bearer new"}
	if len(seen) != 2 || seen[0] != want[0] || seen[1] != want[1] {
		t.Errorf("requests %q, want %q", seen, want)
	}
}
