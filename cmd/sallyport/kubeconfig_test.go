package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
)

// accountServer plays the API server of a cluster with the ServiceAccount sallyport/edge, which may do what allowed says.
// It grants tokens for a day at most.
type accountServer struct {
	allowed func(authorizationv1.ResourceAttributes) bool
}

var accountExpiry = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func (s accountServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := r.Header.Get("Authorization")
	switch {
	case user == "Bearer admin" && r.URL.Path == "/api/v1/namespaces/sallyport/serviceaccounts/edge/token":
		var in authenticationv1.TokenRequest
		answer(w, r, &in, func() {
			in.Status = authenticationv1.TokenRequestStatus{ExpirationTimestamp: metav1.NewTime(accountExpiry),
				Token: fmt.Sprintf("token-for-%ds", *in.Spec.ExpirationSeconds)}
		})
	case user == "Bearer token-for-86400s" && r.URL.Path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
		var in authorizationv1.SelfSubjectAccessReview
		answer(w, r, &in, func() { in.Status.Allowed = s.allowed(*in.Spec.ResourceAttributes) })
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"}`)
	}
}

// answer reads the object of the request, which is in protobuf, and sends it back as filled, in JSON.
func answer(w http.ResponseWriter, r *http.Request, object runtime.Object, fill func()) {
	data, err := io.ReadAll(r.Body)
	if err == nil {
		_, _, err = scheme.Codecs.UniversalDeserializer().Decode(data, nil, object)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fill()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	if err := json.NewEncoder(w).Encode(object); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// startAccounts runs the server and returns an administrator's kubeconfig, with cluster added to what it says of the
// server.
func startAccounts(t *testing.T, s accountServer, cluster string) (kubeconfig, url string) {
	server := httptest.NewTLSServer(s)
	t.Cleanup(server.Close)
	if cluster == "" {
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		cluster = "certificate-authority-data: " + base64.StdEncoding.EncodeToString(ca)
	}
	return write(t, "admin", fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, %s}}]
users: [{name: u, user: {token: admin}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, server.URL, cluster)), server.URL
}

func everything(authorizationv1.ResourceAttributes) bool { return true }

func TestKubeconfigOfTheAccountIsWritten(t *testing.T) {
	admin, url := startAccounts(t, accountServer{func(a authorizationv1.ResourceAttributes) bool {
		return a.Resource != "secrets" && (a.Resource != "ingresses" || a.Verb != "patch")
	}}, "")
	file := filepath.Join(t.TempDir(), "edge.kubeconfig")
	code, out, notes := command(t, "kubeconfig", "--kubeconfig", admin, "--duration", "24h", "-o", file)
	if code != 0 || out != "" {
		t.Fatalf("exit %d %q: %s", code, out, notes)
	}
	want := "the token expires 2030-01-02T03:04:05Z\n" +
		"the API server is named by 127.0.0.1, which other machines do not reach: give the address that they reach by --server\n" +
		"missing: it may not patch ingresses/status: kubectl apply -f deploy/rbac/status.yaml\n"
	if notes != want {
		t.Errorf("got\n%swant\n%s", notes, want)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	c, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if k := c.Clusters["kubernetes"]; k.Server != url || !bytes.Contains(k.CertificateAuthorityData, []byte("CERTIFICATE")) {
		t.Errorf("cluster %+v", k)
	}
	if user := c.AuthInfos[c.Contexts[c.CurrentContext].AuthInfo]; user.Token != "token-for-86400s" {
		t.Errorf("user %+v", user)
	}
}

func TestKubeconfigIsPrintedWithTheServerThatEdgesReach(t *testing.T) {
	admin, _ := startAccounts(t, accountServer{everything}, "")
	code, out, notes := command(t, "kubeconfig", "--kubeconfig", admin, "--duration", "24h", "--server", "https://192.0.2.1:6443")
	if code != 0 || !strings.Contains(out, "server: https://192.0.2.1:6443\n") {
		t.Errorf("exit %d\n%s%s", code, out, notes)
	}
	if !strings.Contains(notes, "every Secret of the cluster") || strings.Contains(notes, "--server") {
		t.Errorf("notes:\n%s", notes)
	}
}

func TestKubeconfigRefuses(t *testing.T) {
	admin, _ := startAccounts(t, accountServer{everything}, "")
	insecure, _ := startAccounts(t, accountServer{everything}, "insecure-skip-tls-verify: true")
	there := write(t, "edge.kubeconfig", "precious")
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"a file that is there", []string{"--kubeconfig", admin, "-o", there}, "--force replaces it"},
		{"an account that is not", []string{"--kubeconfig", admin, "--serviceaccount", "other"}, "kubectl apply -f deploy/rbac/base.yaml"},
		{"a server that is not verified", []string{"--kubeconfig", insecure}, "certificate-authority-data"},
		{"a server without TLS", []string{"--kubeconfig", admin, "--server", "http://192.0.2.1"}, "https://192.0.2.1:6443"},
		{"a folder that is not there", []string{"--kubeconfig", admin, "-o", filepath.Join(t.TempDir(), "no", "file")}, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, notes := command(t, append([]string{"kubeconfig", "--duration", "24h"}, tt.args...)...)
			if code != 1 || out != "" || !strings.Contains(notes, tt.want) {
				t.Errorf("exit %d %q %s, want %q", code, out, notes, tt.want)
			}
		})
	}
	if data, err := os.ReadFile(there); string(data) != "precious" {
		t.Errorf("the file was touched: %q %v", data, err)
	}
}

func TestKubeconfigIsReplacedForWhoReadTheOldOne(t *testing.T) {
	admin, _ := startAccounts(t, accountServer{everything}, "")
	for before, want := range map[os.FileMode]os.FileMode{0o640: 0o640, 0o600: 0o600, 0o664: 0o640} {
		file := write(t, "edge.kubeconfig", "old")
		if err := os.Chmod(file, before); err != nil {
			t.Fatal(err)
		}
		if code, _, notes := command(t, "kubeconfig", "--kubeconfig", admin, "--duration", "24h", "-o", file, "--force"); code != 0 {
			t.Fatalf("exit %d: %s", code, notes)
		}
		if data, err := os.ReadFile(file); !bytes.Contains(data, []byte("token-for-86400s")) {
			t.Errorf("the file was not replaced: %q %v", data, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != want {
			t.Errorf("mode %v of the file became %v, want %v (%v)", before, info.Mode(), want, err)
		}
		if left, err := filepath.Glob(file + ".*"); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
}

// TestTheKubeconfigIsReviewedForWhatTheRolesGrant holds grants to the files that an operator applies, both ways.
func TestTheKubeconfigIsReviewedForWhatTheRolesGrant(t *testing.T) {
	var want []grant
	for _, file := range []string{"base.yaml", "status.yaml"} {
		want = append(want, grantsIn(t, file)...)
	}
	if len(want) < 5 || !reflect.DeepEqual(grants, want) {
		t.Errorf("got  %+v\nwant %+v", grants, want)
	}
}

// grantsIn reads the rules of the file's roles.
func grantsIn(t *testing.T, file string) (out []grant) {
	t.Helper()
	f, err := os.Open(filepath.Join("../../deploy/rbac", file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		var role rbacv1.Role // a ClusterRole has the same rules
		err := d.Decode(&role)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, r := range role.Rules {
			if len(r.APIGroups) != 1 || len(r.Resources) != 1 || len(r.ResourceNames) > 1 {
				t.Fatalf("%s: a rule is for one resource: %v", file, r)
			}
			resource, subresource, _ := strings.Cut(r.Resources[0], "/")
			out = append(out, grant{group: r.APIGroups[0], resource: resource, subresource: subresource, name: strings.Join(r.ResourceNames, ""),
				verbs: strings.Join(slices.Clone(r.Verbs), " "), leases: role.Kind == "Role", file: file})
		}
	}
}

// TestKubeconfigIsRefusedBeforeATokenIsMade for a file that could not be written: nobody could take the token back.
func TestKubeconfigIsRefusedBeforeATokenIsMade(t *testing.T) {
	there := write(t, "there", "")
	for output, want := range map[string]string{
		"/nonexistent/edge.kubeconfig": "write /nonexistent/edge.kubeconfig: ",
		filepath.Dir(there):            " is a folder: name a file in it",
		there:                          " exists: --force replaces it",
		there + ".new":                 "",
	} {
		err := credentialRequest{output: output, force: output != there}.checkOutput()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", output, err, want)
		}
	}
}
