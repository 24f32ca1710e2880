package cluster

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"sallyport/bench/lab/agent"
)

// talker writes two lines, waits for a file, and writes the third.
const talker = `
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  initContainers:
  - {name: first, image: agnhost, command: [echo, before]}
  containers:
  - name: talker
    image: agnhost
    command: [sh, -c, "echo one; echo two; while ! [ -e %[1]s ]; do sleep 0.05; done; echo three"]
  - {name: other, image: agnhost, command: [echo, from the other]}
`

func TestKubectlLogs(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	mark := filepath.Join(c.Dir(), ns+"-go-on")
	c.Apply(t, ns, fmt.Sprintf(talker, mark))
	Eventually(t, 20*time.Second, func() error {
		if got := c.Kubectl(t, "get", "pod", "talker", "-n", ns, "-o", "jsonpath={.status.phase}"); got != "Running" {
			return fmt.Errorf("pod talker is %s", got)
		}
		return nil
	})
	follow := exec.CommandContext(t.Context(), c.programs["kubectl"], "--kubeconfig", c.Kubeconfig(), "logs", "-n", ns, "-f", "talker", "-c", "talker")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, want := range []string{"one", "two", "three"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("followed %q, want %q", lines.Text(), want)
		}
		if want == "two" {
			if err := os.WriteFile(mark, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("kubectl logs -f of a container that has ended: %v", err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-c", "talker"}, "one\ntwo\nthree\n"},
		{[]string{"-c", "talker", "--tail=1"}, "three\n"},
		{[]string{"-c", "talker", "--limit-bytes=5"}, "one\nt"},
		{[]string{"-c", "other"}, "from the other\n"},
		{[]string{"-c", "first"}, "before\n"},
	} {
		args := append([]string{"logs", "-n", ns, "talker"}, tt.args...)
		if got := c.Kubectl(t, args...); got != tt.want {
			t.Errorf("%q: got %q, want %q", args, got, tt.want)
		}
	}
}

// The kubelet's API is for the API server and administrators: who has no certificate of the cluster learns nothing.
func TestKubeletRefusesStrangers(t *testing.T) {
	c := lab.Cluster(t)
	url := fmt.Sprintf("https://%v:%d/containerLogs/default/none/none", c.Host("node-1").Addr, agent.KubeletPort)
	admin := c.RESTConfig()
	stranger := rest.AnonymousClientConfig(admin)
	for _, tt := range []struct {
		name   string
		config *rest.Config
		want   string
	}{
		{"administrator", admin, `404: pod "none" does not run on this node`},
		{"without certificate", stranger, "tls: certificate required"},
	} {
		config, err := rest.TLSConfigFor(tt.config)
		if err != nil {
			t.Fatal(err)
		}
		if got := getTLS(c.Host("control"), url, config); !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// getTLS returns the status and body of the answer, or the error.
func getTLS(host *Host, url string, config *tls.Config) string {
	client := host.HTTPClient()
	client.Transport.(*http.Transport).TLSClientConfig = config
	response, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d: %s", response.StatusCode, body)
}

// ownImages has a pod of each image that the lab's own program plays, and a volume from a Secret that comes late.
const ownImages = `
apiVersion: v1
kind: Pod
metadata: {name: badhttp}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: badhttp, image: badhttp, readinessProbe: {httpGet: {path: /ok, port: 8080}}}
---
apiVersion: v1
kind: Pod
metadata: {name: websocket}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: key, secret: {secretName: late}}]
  containers:
  - name: websocket
    image: websocket
    args: [--listen, ":80"]
    volumeMounts: [{name: key, mountPath: /etc/lab-test/key}]
    readinessProbe: {exec: {command: [grep, open, /etc/lab-test/key/word]}}
`

func TestOwnImagesAndVolumes(t *testing.T) {
	c := lab.Cluster(t)
	ns := c.Namespace(t)
	c.Apply(t, ns, ownImages)
	Eventually(t, 20*time.Second, func() error {
		got := c.Kubectl(t, "get", "pod", "websocket", "-n", ns, "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
		if !strings.Contains(got, "CreateContainerConfigError") || !strings.Contains(got, `secrets \"late\" not found`) {
			return fmt.Errorf("pod websocket waits for %q", got)
		}
		return nil
	})
	c.Kubectl(t, "create", "secret", "generic", "late", "-n", ns, "--from-literal=word=shut")
	c.Kubectl(t, "wait", "pod/websocket", "-n", ns, "--for=jsonpath={.status.phase}=Running", "--timeout=30s")
	c.Kubectl(t, "patch", "secret", "late", "-n", ns, "-p", `{"stringData":{"word":"open"}}`)
	c.Kubectl(t, "wait", "pod/websocket", "pod/badhttp", "-n", ns, "--for=condition=Ready", "--timeout=30s")
	ip := netip.MustParseAddr(c.Kubectl(t, "get", "pod", "websocket", "-n", ns, "-o", "jsonpath={.status.podIP}"))
	if got, err := get(c.Host("node-1"), ip, 80); got != "websocket" {
		t.Errorf("the pod says %q, %v", got, err)
	}
}
