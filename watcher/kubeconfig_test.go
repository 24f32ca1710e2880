package watcher

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfig writes a kubeconfig with contexts of the same name as their cluster and user.
func kubeconfig(t *testing.T, file, current, user string, contexts ...string) string {
	t.Helper()
	s := "apiVersion: v1\nkind: Config\ncurrent-context: " + current + "\nclusters:\n"
	for _, c := range contexts {
		s += "- {name: " + c + ", cluster: {server: https://" + c + ".example.com:6443}}\n"
	}
	s += "users:\n"
	for _, c := range contexts {
		s += "- {name: " + c + ", user: {" + user + "}}\n"
	}
	s += "contexts:\n"
	for _, c := range contexts {
		s += "- {name: " + c + ", context: {cluster: " + c + ", user: " + c + "}}\n"
	}
	write(t, file, s)
	return file
}

// noKubeconfig makes a home without kubeconfig, and returns where files can be made.
func noKubeconfig(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	home := clientcmd.RecommendedHomeFile
	clientcmd.RecommendedHomeFile = filepath.Join(dir, "home", ".kube", "config")
	t.Cleanup(func() { clientcmd.RecommendedHomeFile = home })
	return dir
}

func TestKubeconfigFound(t *testing.T) {
	for _, tt := range []struct {
		name                                 string
		prepare                              func(t *testing.T, dir string) (path, context string)
		wantHost, wantToken, wantOriginParts string
	}{
		{"--kubeconfig wins over all else", func(t *testing.T, dir string) (string, string) {
			t.Setenv("KUBECONFIG", kubeconfig(t, dir+"/env", "env", "token: t", "env"))
			return kubeconfig(t, dir+"/flag", "flag", "token: t", "flag"), ""
		}, "https://flag.example.com:6443", "t", "/flag context flag"},
		{"--context wins over current-context", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/flag", "a", "token: t", "a", "b"), "b"
		}, "https://b.example.com:6443", "t", "/flag context b"},
		{"$KUBECONFIG, several files, of which one is missing", func(t *testing.T, dir string) (string, string) {
			t.Setenv("KUBECONFIG", strings.Join([]string{kubeconfig(t, dir+"/one", "a", "token: t", "a"), dir + "/missing", kubeconfig(t, dir+"/two", "b", "token: u", "b")}, ":"))
			return "", "b"
		}, "https://b.example.com:6443", "u", "/one /two context b"},
		{"of two files the first one's current-context", func(t *testing.T, dir string) (string, string) {
			t.Setenv("KUBECONFIG", kubeconfig(t, dir+"/one", "a", "token: t", "a")+":"+kubeconfig(t, dir+"/two", "b", "token: u", "b"))
			return "", ""
		}, "https://a.example.com:6443", "t", "context a"},
		{"the home folder", func(t *testing.T, dir string) (string, string) {
			kubeconfig(t, dir+"/home/.kube/config", "home", "token: t", "home")
			return "", ""
		}, "https://home.example.com:6443", "t", "/home/.kube/config context home"},
		{"relative files are relative to the kubeconfig", func(t *testing.T, dir string) (string, string) {
			write(t, dir+"/token", "t")
			return kubeconfig(t, dir+"/flag", "a", "tokenFile: token", "a"), ""
		}, "https://a.example.com:6443", "t", "/flag"},
		{"an exec plugin", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/flag", "a", "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, interactiveMode: Never}", "a"), ""
		}, "https://a.example.com:6443", "", "/flag"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, context := tt.prepare(t, noKubeconfig(t))
			c, origin, err := Kubeconfig(path, context)
			if err != nil {
				t.Fatal(err)
			}
			if c.Host != tt.wantHost || c.BearerToken != tt.wantToken || c.QPS < 50 {
				t.Errorf("got host %s token %q QPS %v", c.Host, c.BearerToken, c.QPS)
			}
			for part := range strings.FieldsSeq(tt.wantOriginParts) {
				if !strings.Contains(origin, part) {
					t.Errorf("origin %q lacks %q", origin, part)
				}
			}
		})
	}
}

func TestKubeconfigErrors(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, dir string) (path, context string)
		want    string // with DIR for the test's folder
	}{
		{"the file given is missing", func(_ *testing.T, dir string) (string, string) { return dir + "/missing", "" },
			"kubeconfig DIR/missing: no such file or directory: give an existing file by --kubeconfig"},
		{"no file of $KUBECONFIG exists", func(t *testing.T, dir string) (string, string) {
			t.Setenv("KUBECONFIG", dir+"/a::"+dir+"/b")
			return "", ""
		}, "$KUBECONFIG names DIR/a, DIR/b, none of which exists: correct it, unset it, or give a file by --kubeconfig"},
		{"nothing at all", func(*testing.T, string) (string, string) { return "", "" },
			"no kubeconfig: $KUBECONFIG is not set, DIR/home/.kube/config does not exist, and this is not a pod: give a file by --kubeconfig"},
		{"broken YAML", func(t *testing.T, dir string) (string, string) {
			write(t, dir+"/f", "apiVersion: v1\nkind: Config\nusers:\n- name: a\n  user: {token: [}\n")
			return dir + "/f", ""
		}, "kubeconfig DIR/f:5: not a kubeconfig: did not find expected node content"},
		{"wrong type", func(t *testing.T, dir string) (string, string) {
			write(t, dir+"/f", "apiVersion: v1\nkind: Config\nusers: none\n")
			return dir + "/f", ""
		}, "kubeconfig DIR/f: not a kubeconfig: json: cannot unmarshal string into Go struct field Config.users of type []v1.NamedAuthInfo"},
		{"one of several files is broken", func(t *testing.T, dir string) (string, string) {
			write(t, dir+"/f", "a: [\n")
			t.Setenv("KUBECONFIG", kubeconfig(t, dir+"/good", "a", "", "a")+":"+dir+"/f")
			return "", ""
		}, "kubeconfig DIR/f:2: not a kubeconfig: did not find expected node content"},
		{"a folder", func(_ *testing.T, dir string) (string, string) { return dir, "" }, "kubeconfig DIR: is a directory"},
		{"an empty file", func(t *testing.T, dir string) (string, string) {
			write(t, dir+"/f", "")
			return dir + "/f", ""
		}, "kubeconfig DIR/f: it has no contexts: is it a kubeconfig?"},
		{"no such context", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/f", "a", "", "b", "a"), "c"
		}, `kubeconfig DIR/f: it has no context "c": choose one by --context: a, b`},
		{"no current-context", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/f", `""`, "", "b", "a"), ""
		}, "kubeconfig DIR/f: it has no current-context: choose one by --context: a, b"},
		{"the context's cluster and user are missing", func(t *testing.T, dir string) (string, string) {
			write(t, dir+"/f", "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: x, user: z}}]\n")
			return dir + "/f", ""
		}, `kubeconfig DIR/f: context "a" names cluster "x", which it does not have`},
		{"files that it names are missing", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/f", "a", "client-certificate: tls.crt, client-key: /nowhere/tls.key", "a"), ""
		}, "kubeconfig DIR/f: client-certificate of user \"a\": open DIR/tls.crt: no such file or directory\nclient-key of user \"a\": open /nowhere/tls.key: no such file or directory"},
		{"a certificate that is none", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/f", "a", "client-certificate-data: AAAA, client-key-data: AAAA", "a"), ""
		}, `kubeconfig DIR/f: context "a": tls: failed to find any PEM data in certificate input`},
		{"a password in the server's URL", func(t *testing.T, dir string) (string, string) {
			write(t, dir+"/f", "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"+
				"clusters: [{name: a, cluster: {server: 'https://me:secret@192.0.2.1:6443'}}]\nusers: [{name: a, user: {}}]\n")
			return dir + "/f", ""
		}, `kubeconfig DIR/f: context "a": the URL of the server has a user in it: write username and password under users`},
		{"an auth provider that is gone", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/f", "a", "auth-provider: {name: gcp}", "a"), ""
		}, `kubeconfig DIR/f: context "a": no Auth Provider found for name "gcp"`},
		{"the exec plugin is not installed", func(t *testing.T, dir string) (string, string) {
			return kubeconfig(t, dir+"/f", "a", "exec: {apiVersion: client.authentication.k8s.io/v1, command: no-such-plugin, installHint: See the wiki., interactiveMode: Never}", "a"), ""
		}, `kubeconfig DIR/f: exec plugin of user "a": exec: "no-such-plugin": executable file not found in $PATH: install it. See the wiki.`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := noKubeconfig(t)
			path, context := tt.prepare(t, dir)
			_, _, err := Kubeconfig(path, context)
			if err == nil {
				t.Fatal("no error")
			}
			if got := strings.ReplaceAll(err.Error(), dir, "DIR"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestKubeconfigInCluster(t *testing.T) {
	noKubeconfig(t)
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	const token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	_, origin, err := Kubeconfig("", "")
	if _, missing := os.Stat(token); missing != nil {
		if err == nil || !strings.Contains(err.Error(), token) {
			t.Errorf("without a token: %v", err)
		}
		return
	}
	if err != nil || origin != "the pod's ServiceAccount" {
		t.Errorf("got %q, %v", origin, err)
	}
}
