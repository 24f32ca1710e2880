package watcher

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"sallyport/watcher/objects"
)

// keeping returns the source of a server's cluster that is kept in file, and its log.
func keeping(t *testing.T, s *apiServer, file string) (*LastGood, *safeBuffer) {
	t.Helper()
	log, lines := textLog()
	o := testOptions(log)
	o.Secrets = SecretOptions{Access: SecretsNamed, Wanted: wantedSecrets}
	return NewLastGood(connect(t, s, o), file, o), lines
}

// kept makes a last-good file of a cluster with the Service a and a Secret.
func kept(t *testing.T, s *apiServer) (file string) {
	t.Helper()
	s.putService("a")
	s.putIngress("one", "tls")
	s.putSecret("tls", corev1.SecretTypeTLS, "A")
	file = filepath.Join(t.TempDir(), "state", "objects.yaml")
	l, _ := keeping(t, s, file)
	stopped(t, l, "the file is written", func() bool { return secretsOf(l) == "tls=A" && !l.Health().Written.IsZero() })
	return file
}

// TestLastGoodServes starts without an API server, which comes later.
func TestLastGoodServes(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	file := kept(t, s)
	s.change(true, func() { s.away = true })
	l, lines := keeping(t, s, file)
	changes := start(t, l)
	eventually(t, changes, "the file's objects", ready(l))
	c, _ := l.Objects()
	if !c.Stale || c.Conflict != "" || c.Name != "east" || names(l) != "a" || secretsOf(l) != "tls=A" || len(c.Namespaces) != 1 {
		t.Errorf("got %+v", c)
	}
	if h := l.Health(); !h.Stale || h.Up || h.File != file || h.Written.IsZero() {
		t.Errorf("got %+v", h)
	}

	s.putService("b")
	s.change(false, func() { s.away = false })
	eventually(t, changes, "the API server's objects", func() bool { c, ok := l.Objects(); return ok && !c.Stale && names(l) == "a b" })
	if h := l.Health(); h.Stale {
		t.Errorf("got %+v", h)
	}
	if strings.Contains(lines.String(), "level=ERROR") {
		t.Errorf("log: %s", lines)
	}
}

// TestLastGoodWaitsForSlowServer has an API server that takes requests and does not answer: no request fails.
func TestLastGoodWaitsForSlowServer(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	file := kept(t, s)
	s.change(true, func() { s.hanging = true })
	l, _ := keeping(t, s, file)
	changes := start(t, l)
	if ready(l)() {
		t.Error("the API server was not waited for")
	}
	eventually(t, changes, "the file's objects", ready(l))
}

// TestLastGoodOtherCluster has an API server of another cluster at start: nothing of it is taken or even read, and the
// file stays.
func TestLastGoodOtherCluster(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	file := kept(t, s)
	other := newAPIServer(t, "two")
	other.putService("b")
	before := content(nil, file)
	l, _ := keeping(t, other, file)
	stopped(t, l, "conflict", func() bool { c, ok := l.Objects(); return ok && c.Stale && c.Conflict != "" })
	c, _ := l.Objects()
	want := "the API server " + other.URL + " is of another cluster: its namespace kube-system has UID two, ours has one: " +
		"correct the kubeconfig, or, if the cluster was made anew, remove " + file + " and restart"
	if c.Conflict != want || names(l) != "a" {
		t.Errorf("got  %s, Services %s\nwant %s", c.Conflict, names(l), want)
	}
	if asked := other.asked(); len(asked) != 1 {
		t.Errorf("the other cluster was asked for %q", asked)
	}
	if string(content(nil, file)) != string(before) {
		t.Error("the file was written")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	l, _ = keeping(t, other, file)
	stopped(t, l, "the other cluster is taken", func() bool { c, ok := l.Objects(); return ok && !c.Stale && names(l) == "b" })
}

// TestLastGoodFillsWhatIsDenied restarts after a role was taken away: what it permitted is still served, and still kept.
func TestLastGoodFillsWhatIsDenied(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	file := kept(t, s)
	s.putService("b")
	s.change(true, func() { s.refused["services"], s.refused["ingresses"] = http.StatusForbidden, http.StatusForbidden })
	for range 2 {
		l, _ := keeping(t, s, file)
		stopped(t, l, "Services and Ingresses are denied", func() bool { c, ok := l.Objects(); return ok && len(c.Denied) == 2 })
		c, _ := l.Objects()
		if !c.Stale || names(l) != "a" || len(c.Ingresses) != 1 || len(c.Secrets) != 1 {
			t.Errorf("Services %s, %+v", names(l), c)
		}
	}
	s.change(false, func() { s.refused = map[string]int{} })
	l, _ := keeping(t, s, file)
	stopped(t, l, "all is permitted", func() bool { c, ok := l.Objects(); return ok && !c.Stale && names(l) == "a b" })
}

// TestLastGoodFile looks at the file: who may read it, and that it is an ordinary manifest with all that is needed.
func TestLastGoodFile(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t, "one")
	file := kept(t, s)
	for path, want := range map[string]fs.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	m, err := objects.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if o := m.Objects; len(m.Errors)+len(m.Warnings)+len(m.Skipped) > 0 || len(o.Services) != 1 || len(o.Secrets) != 1 || len(o.Namespaces) != 1 || len(o.Ingresses) != 1 {
		t.Errorf("got %+v", m)
	}
	if uid, err := lastGoodFile(file).clusterUID(); uid != "one" || err != nil {
		t.Errorf("got UID %q, %v", uid, err)
	}
}

// TestLastGoodBroken starts with files that a crash or a person left.
func TestLastGoodBroken(t *testing.T) {
	t.Parallel()
	const service = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}` + "\n"
	for _, tt := range []struct{ name, file, temporary, want, log string }{
		{"killed before the rename", service, "---\n{\"apiVersion\":", "a", ""},
		{"killed before the first rename", "", service, "not complete", ""},
		{"not a manifest", "\x00\x01", "", "not complete", "level=ERROR"},
		{"empty", "# nothing\n", "", "not complete", "has no objects"},
		{"an object is broken", service + `---` + "\n" + `{"apiVersion":"v1","kind":"Service","metadata":{"name":"B"}}`, "", "a", "level=ERROR"},
		{"YAML, by a person", manifest("a", "b"), "", "a b", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "objects.yaml")
			for name, text := range map[string]string{file: tt.file, file + ".tmp": tt.temporary} {
				if text != "" {
					write(t, name, text)
				}
			}
			s := newAPIServer(t, "one")
			s.change(false, func() { s.away = true })
			l, lines := keeping(t, s, file)
			changes := start(t, l)
			eventually(t, tick(t), "the API server is away", func() bool { return l.Health().LastError != "" })
			got := "not complete"
			if ready(l)() {
				got = names(l)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if errorLogged := strings.Contains(lines.String(), "level=ERROR"); errorLogged != (tt.log != "") || !strings.Contains(lines.String(), tt.log) {
				t.Errorf("want %q in the log: %s", tt.log, lines)
			}
			s.putService("new")
			s.change(false, func() { s.away = false })
			eventually(t, changes, "the API server's objects", func() bool { return names(l) == "new" })
			eventually(t, tick(t), "the file is replaced", func() bool { return strings.Contains(string(content(nil, file)), `"name":"new"`) })
			if _, err := os.Stat(file + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the temporary file: %v", err)
			}
		})
	}
}

// TestLastGoodCannotBeWritten has a folder that is a file: it is told, and serving goes on.
func TestLastGoodCannotBeWritten(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "state")
	write(t, folder, "a file")
	s := newAPIServer(t, "one")
	s.putService("a")
	l, lines := keeping(t, s, filepath.Join(folder, "objects.yaml"))
	changes := start(t, l)
	eventually(t, changes, "a", func() bool { return names(l) == "a" })
	eventually(t, tick(t), "it is logged", func() bool { return strings.Contains(lines.String(), "last-good file cannot be written") })
}

// TestLastGoodKeepsTheLastChange changes something just before the end, within the time between two writes.
func TestLastGoodKeepsTheLastChange(t *testing.T) {
	t.Parallel()
	log, _ := textLog()
	client := fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}})
	file := filepath.Join(t.TempDir(), "objects.yaml")
	l := NewLastGood(fakeAPI(t, client, log), file, testOptions(log))
	created := false
	stopped(t, l, "b was seen", func() bool {
		if !created && names(l) == "a" && !l.Health().Written.IsZero() {
			created = true
			b := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "b"}}
			if _, err := client.CoreV1().Services("shop").Create(t.Context(), b, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		return names(l) == "a b"
	})
	if text := string(content(nil, file)); !strings.Contains(text, `"name":"b"`) {
		t.Errorf("got %s", text)
	}
}
