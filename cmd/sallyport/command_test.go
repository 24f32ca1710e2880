package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"

	"sallyport/cmd/sallyport/admin"
	"sallyport/watcher/model"
)

// command runs the command line in this process.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRenderPrintsSnapshotProblemsAndRules(t *testing.T) {
	manifests := write(t, "all.yaml", `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, loadBalancerIP: 192.0.2.1, ports: [{port: 80, nodePort: 30001}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: shop}
spec: {type: LoadBalancer, loadBalancerIP: 203.0.113.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.2]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
`)
	pools := write(t, "sallyport.yaml", "loadBalancer:\n  ipAddressPools:\n  - {name: public, addresses: [192.0.2.0/28]}\n")
	code, out, errs := command(t, "render", "--config", pools, "-f", manifests)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	for _, want := range []string{"VIPs 192.0.2.1", "AddressNotInPool", "*nat", "--to-destination 10.1.0.2:8080"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if !strings.Contains(errs, "skipped") || !strings.Contains(errs, "Deployment") {
		t.Errorf("the Deployment is not mentioned: %q", errs)
	}
}

func TestRenderOfABrokenFilePrintsTheRestAndFails(t *testing.T) {
	manifests := write(t, "all.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: good}\nspec: {ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: 80}\n")
	code, out, errs := command(t, "render", "-f", manifests)
	if code != 1 || !strings.Contains(out, "good") || !strings.Contains(errs, "all.yaml:6") {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
}

func TestCheckSaysWhatItWouldDo(t *testing.T) {
	kubeconfig := write(t, "kubeconfig", `apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://192.0.2.9:6443"}}]
users: [{name: u, user: {token: secret-token}}]
`)
	code, out, errs := command(t, "check", "--kubeconfig", kubeconfig, "--reach", "nodes")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	for _, want := range []string{"https://192.0.2.9:6443", kubeconfig, "node ports", ":80", "127.0.0.1:9440"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "secret-token") {
		t.Error("the token is printed")
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"missing kubeconfig", []string{"check", "--kubeconfig", "/nonexistent/kubeconfig"}, "/nonexistent/kubeconfig"},
		{"missing config", []string{"check", "--config", "/nonexistent/sallyport.yaml"}, "/nonexistent/sallyport.yaml"},
		{"bad flag value", []string{"check", "--reach", "direct"}, `command line: reach: "direct" is not known`},
		{"bad admin address", []string{"run", "--admin-address", "9440"}, "--admin-address"},
		{"no HTTP port", []string{"check", "--http-port", "0"}, "command line: l7.httpPort: 0 is not a port"},
		{"no HTTP port in the demo", []string{"demo", "--http-port", "0"}, "command line: l7.httpPort: 0 is not a port"},
		{"bad HTTP port", []string{"check", "--http-port", "70000"}, `--http-port: "70000" is not a number from 0 to 65535`},
		{"bad HTTPS port", []string{"check", "--https-port", "https"}, `--https-port: "https" is not a number from 0 to 65535`},
		{"nothing to render", []string{"render", "-f", ""}, "--filename"},
		{"nothing to explain", []string{"explain"}, "http://shop.example.com/cart"},
		{"much to explain", []string{"explain", "http://a", "http://b"}, "http://shop.example.com/cart"},
		{"two sources", []string{"run", "--manifests", "a", "--kubeconfig", "b"}, "kubeconfig manifests"},
		{"missing manifests", []string{"render", "-f", "/nonexistent/manifests"}, "/nonexistent/manifests"},
		{"unknown command", []string{"serve"}, "serve"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, _, errs := command(t, tt.args...)
			if code != 1 || !strings.Contains(errs, tt.want) {
				t.Errorf("exit %d, %q; want 1 and %q", code, errs, tt.want)
			}
		})
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s has no example or summary", c.Name())
		}
	}
}

func TestVersion(t *testing.T) {
	if code, out, _ := command(t, "version"); code != 0 || !strings.HasPrefix(out, "sallyport ") {
		t.Errorf("exit %d, %q", code, out)
	}
}

// TestCleanupWithBrokenConfig holds that what Sallyport made can be removed whatever has become of its configuration.
func TestCleanupWithBrokenConfig(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("SALLYPORT_LAB") != "required" {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and its network namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	defer ns.Close()
	if out, err := exec.Command("iptables", "-t", "nat", "-N", "SALLY-SERVICES").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	broken := write(t, "sallyport.yaml", "loadBalancer: {adressPools: []}\n")
	code, out, errs := command(t, "cleanup", "--config", broken)
	if code != 0 || !strings.Contains(out, "removed 1 chains and 0 jumps in table nat") || !strings.Contains(errs, "sallyport.yaml:1:") {
		t.Errorf("exit %d, output %q, errors %q", code, out, errs)
	}
}

// fixed is what a running edge shows, here of one that stands still.
type fixed struct{ status admin.Status }

func (f fixed) Status() admin.Status        { return f.status }
func (f fixed) Snapshot() *model.Snapshot   { return nil }
func (f fixed) Explain(string) (any, error) { return nil, errors.New("no") }
func (f fixed) serve(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "admin.sock")
	s, err := admin.Listen(admin.Options{Address: "127.0.0.1:0", Socket: socket, Metrics: prometheus.NewRegistry(), Ready: func() error { return nil }, Views: f})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// untilWritten ends a context with the first write of a whole status.
type untilWritten struct {
	bytes.Buffer
	stop context.CancelFunc
}

func (u *untilWritten) Write(p []byte) (int, error) {
	n, err := u.Buffer.Write(p)
	if strings.Contains(u.String(), "edge-1") {
		u.stop()
	}
	return n, err
}

func TestWatchedStatusIsAStreamForPrograms(t *testing.T) {
	socket := fixed{admin.Status{Edge: "edge-1"}}.serve(t)
	for form, begins := range map[string]string{"text": clearScreen + "edge ", "json": "{\n", "yaml": "---\nclusters:"} {
		ctx, stop := context.WithCancel(t.Context())
		out := &untilWritten{stop: stop}
		if code := run(ctx, []string{"status", "--watch", "--socket", socket, "-o", form}, out, out); code != 0 || !strings.HasPrefix(out.String(), begins) {
			t.Errorf("%s: exit %d, got %q, want it to begin with %q", form, code, out.String(), begins)
		}
	}
}

// TestListsInJSONAreNeverNull looks at commands that have nothing to list: a program that goes through the list must not have
// to ask first whether it is one.
func TestListsInJSONAreNeverNull(t *testing.T) {
	config := write(t, "sallyport.yaml", "l4: {dataplane: userspace}\n")
	if code, out, errs := command(t, "check", "-o", "json", "--config", config, "--manifests", t.TempDir()); code != 0 || !strings.Contains(out, `"findings": []`) {
		t.Errorf("check: exit %d, %s%s", code, out, errs)
	}
	log := slog.New(slog.DiscardHandler)
	e := &edge{pipeline: &pipeline{problems: newProblemBook(log, prometheus.NewRegistry()), inputs: []input{{about: "nothing"}}, lanes: []*lane{testLane(nil)}}}
	if data, err := json.Marshal(e.Status()); err != nil || strings.Contains(string(data), "null") {
		t.Errorf("status: %v %s", err, data)
	}
}

func TestCleanupSaysThatAnEdgeRuns(t *testing.T) {
	for dataplane, want := range map[string]string{"iptables": "stop it", "userspace": ""} {
		socket := fixed{admin.Status{Edge: "edge-1", Dataplane: dataplane}}.serve(t)
		var errs bytes.Buffer
		cmd := newCleanup()
		cmd.SetContext(t.Context())
		cmd.SetErr(&errs)
		if warnOfRunning(cmd, runningEdge{socket: socket}); (errs.Len() > 0) != (want != "") || !strings.Contains(errs.String(), want) {
			t.Errorf("%s: %q, want %q", dataplane, errs.String(), want)
		}
	}
}

func TestStatusAsksAtTheConfiguredSocket(t *testing.T) {
	socket := fixed{admin.Status{Edge: "edge-1"}}.serve(t)
	config := write(t, "sallyport.yaml", "edge: {admin: {socket: "+socket+"}}\n")
	if code, out, errs := command(t, "status", "--config", config); code != 0 || !strings.Contains(out, "edge-1") {
		t.Errorf("exit %d, %s%s", code, out, errs)
	}
	if code, _, errs := command(t, "explain", "--config", config, "http://a"); code != 1 || errs != "sallyport: no\n" {
		t.Errorf("exit %d, %s", code, errs)
	}
	if code, _, errs := command(t, "status", "--config", write(t, "bad.yaml", "edg: {}\n")); code != 1 || !strings.Contains(errs, "bad.yaml:1: edg") {
		t.Errorf("exit %d, %s", code, errs)
	}
}
