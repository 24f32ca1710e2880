package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// rolesFolder has the files that an operator applies.
const rolesFolder = "../../../deploy/rbac/"

// A permission is one verb of one rule of those files, such as "list services".
type permission struct{ verb, resource string }

func (p permission) String() string { return p.verb + " " + p.resource }

// complete is what an account is without that has all permissions.
var complete = permission{"nothing", "missing"}

// An account is a ServiceAccount of its own with the roles of some files, and an edge with it.
type account struct {
	name       string // also of its namespace, and a suffix of its roles
	without    permission
	kubeconfig string
	addr       string // loopback address on edge-3 that its edge serves on
	notes      string // what sallyport kubeconfig said
	logFile    string
}

// permissionsOf lists what the files grant, in their order.
func permissionsOf(t *testing.T, files ...string) (out []permission) {
	t.Helper()
	for _, o := range roleObjects(t, files) {
		for _, r := range rulesOf(t, o) {
			for _, verb := range r.Verbs {
				out = append(out, permission{verb, r.Resources[0]})
			}
		}
	}
	if len(out) == 0 {
		t.Fatalf("%v grant nothing", files)
	}
	return out
}

func roleObjects(t *testing.T, files []string) (out []*unstructured.Unstructured) {
	t.Helper()
	for _, file := range files {
		f, err := os.Open(rolesFolder + file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for d := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
			o := &unstructured.Unstructured{}
			err := d.Decode(o)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			out = append(out, o)
		}
	}
	return out
}

// rulesOf returns the rules of a Role or ClusterRole, and none of anything else.
func rulesOf(t *testing.T, o *unstructured.Unstructured) []rbacv1.PolicyRule {
	t.Helper()
	var role rbacv1.ClusterRole // has the rules of a Role too
	if !strings.HasSuffix(o.GetKind(), "Role") {
		return nil
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role); err != nil {
		t.Fatal(err)
	}
	return role.Rules
}

// rolesFor renders the files for the account: under its name, with "shop" for a namespace of Secrets, and without one permission.
func (a *account) rolesFor(t *testing.T, shop string, files []string) string {
	t.Helper()
	var out strings.Builder
	for _, o := range roleObjects(t, files) {
		if o.GetKind() == "IngressClass" {
			continue // there already
		}
		a.drop(t, o)
		data, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		renamed := strings.NewReplacer(`"namespace":"sallyport"`, `"namespace":"`+a.name+`"`, `"name":"sallyport"`, `"name":"`+a.name+`"`,
			`"name":"sallyport-`, `"name":"`+a.name+`-`, `"namespace":"shop"`, `"namespace":"`+shop+`"`).Replace(string(data))
		out.WriteString(renamed + "\n---\n")
	}
	return out.String()
}

// drop takes the permission that the account is without from the rules of o.
func (a *account) drop(t *testing.T, o *unstructured.Unstructured) {
	rules := rulesOf(t, o)
	if rules == nil {
		return
	}
	for i := range rules {
		if rules[i].Resources[0] == a.without.resource {
			rules[i].Verbs = slices.DeleteFunc(rules[i].Verbs, func(v string) bool { return v == a.without.verb })
		}
	}
	rules = slices.DeleteFunc(rules, func(r rbacv1.PolicyRule) bool { return len(r.Verbs) == 0 })
	list := make([]any, 0, len(rules))
	for i := range rules {
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&rules[i])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, object)
	}
	o.Object["rules"] = list
}

// newAccount makes the nth account of the test, and its kubeconfig by the command that an operator uses.
func (s *site) newAccount(t *testing.T, n int, shop string, without permission, files ...string) *account {
	t.Helper()
	a := &account{name: fmt.Sprintf("%s-rbac-%d", shop, n), without: without, addr: fmt.Sprintf("127.0.1.%d", n+1)}
	roles := a.rolesFor(t, shop, files)
	s.Apply(t, "", roles)
	t.Cleanup(func() { s.Delete(t, "", roles) })
	a.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	out, err := exec.Command(program, "kubeconfig", "--kubeconfig", s.Kubeconfig(), "--namespace", a.name, "--duration", "1h", "-o", a.kubeconfig).CombinedOutput()
	if err != nil {
		t.Fatalf("kubeconfig: %v: %s", err, out)
	}
	a.notes = string(out)
	return a
}

// start runs an edge with the account, in user space on a loopback address of edge-3, so that many can run side by side.
// Without streaming, objects are read as from an API server that cannot stream them.
func (a *account) start(t *testing.T, s *site, streaming bool, config string) {
	t.Helper()
	dir := t.TempDir()
	a.logFile = filepath.Join(dir, "log")
	log, err := os.Create(a.logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	config += fmt.Sprintf(`
reach: nodes
edge: {name: %s, stateDir: %s, admin: {address: "%s:9440", socket: %s/admin.sock}}
l4: {dataplane: userspace, nodePortAddresses: ["%s/32"]}
l7: {addresses: ["%s"]}
`, a.name, dir, a.addr, dir, a.addr, a.addr)
	file := filepath.Join(dir, "sallyport.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := s.Host("edge-3").Command(context.WithoutCancel(t.Context()), program, "run", "--config", file, "--kubeconfig", a.kubeconfig)
	cmd.Env = append(cmd.Env, fmt.Sprintf("KUBE_FEATURE_WatchListClient=%t", streaming))
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", a.name, tail(a.log(t), 30))
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("the edge of %s had ended: %v", a.name, err)
		}
		_ = cmd.Wait() // killed
	})
}

func (a *account) log(t *testing.T) string {
	data, err := os.ReadFile(a.logFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// says is nil when a line of the log has all the words.
func (a *account) says(t *testing.T, words ...string) error {
	for line := range strings.Lines(a.log(t)) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return nil
		}
	}
	return fmt.Errorf("no line of the log has %q", words)
}

// serves is nil when the edge answers a request for the host with the code.
func (a *account) serves(s *site, host string, code int) error {
	got := get(s.Host("edge-3"), "http://"+a.addr+"/", host)
	if got.code != code {
		return fmt.Errorf("%s: %d %v, want %d", host, got.code, got.err, code)
	}
	return nil
}
