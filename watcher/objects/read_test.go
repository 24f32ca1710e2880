package objects

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// summary lists what a manifest holds: the objects by kind and name, then what was skipped and complained of.
func summary(m Manifest) string {
	var b strings.Builder
	for _, k := range kinds {
		var ids []string
		for _, o := range k.list(m.Objects) {
			ids = append(ids, k.id(o)+"\n")
		}
		slices.Sort(ids)
		b.WriteString(strings.Join(ids, ""))
	}
	for _, s := range m.Skipped {
		fmt.Fprintf(&b, "skipped %v: %s\n", s.Position, s.Object)
	}
	for _, w := range m.Warnings {
		fmt.Fprintln(&b, "warning", w)
	}
	for _, e := range m.Errors {
		fmt.Fprintln(&b, "error", e)
	}
	return b.String()
}

const web = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n"

func TestParse(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"only comments and separators", "# nothing\n---\n\n---\n# more\n", ""},
		{"one document", web, "Service shop/web\n"},
		{"several documents, comments, blanks, directives", "%YAML 1.1\n---\n# first\n" + web + "--- # second\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\n",
			"Node n1\nService shop/web\n"},
		{"content on the separator's line", "--- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n", "Node n1\n"},
		{"a separator inside a block is indented and is none", "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations:\n    x: |\n      ---\n      a\n", "Node n1\n"},
		{"JSON", `{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}`, "Node n1\n"},
		{"JSON, one value after the other", "{\"apiVersion\": \"v1\", \"kind\": \"Node\",\n\"metadata\": {\"name\": \"n1\"}}\n{\"apiVersion\": \"v1\", \"kind\": \"Node\",\n \"metadata\": {\"name\": \"n2\"}}\n\n {\"apiVersion\": \"v1\",\n\"kind\": \"Node\"}",
			"Node n1\nNode n2\nerror f.yaml:6: Node: metadata.name is missing\n"},
		{"a document that ends by dots", web + "...\n# comment\napiVersion: v1\nkind: Node\n", "Service shop/web\nerror f.yaml:7: Node: metadata.name is missing\n"},
		{"Windows line ends", strings.ReplaceAll("---\n"+web+"---\n"+web, "\n", "\r\n"),
			"Service shop/web\nerror f.yaml:7: Service shop/web is defined twice, first at f.yaml:2: remove one\n"},
		{"a List", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: p, namespace: shop}\n- apiVersion: v1\n  kind: Node\n",
			"Node n1\nskipped f.yaml:5: v1 Pod shop/p\nerror f.yaml:8: Node: metadata.name is missing\n"},
		{"a typed list", "apiVersion: v1\nkind: ServiceList\nitems:\n- " + strings.TrimSpace(strings.ReplaceAll(web, "\n", "\n  ")), "Service shop/web\n"},
		{"the default namespace, and none where there is none", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, namespace: x}\n",
			"Node n1\nService default/web\n"},
		{"other kinds are skipped", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: many}\n---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n",
			"skipped f.yaml:1: apps/v1 Deployment web\nskipped f.yaml:6: serving.knative.dev/v1 Service k\n"},
		{"an old version of our kind", "\n\napiVersion: networking.k8s.io/v1beta1\nkind: Ingress\nmetadata: {name: web}\n",
			"error f.yaml:3: apiVersion \"networking.k8s.io/v1beta1\" of kind Ingress is not read: convert it to networking.k8s.io/v1\n"},
		{"a misspelt field is told and costs nothing else", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {prots: [], type: NodePort}\n",
			"Service shop/web\nwarning f.yaml:1: Service shop/web: unknown field \"spec.prots\": ignored, check its spelling\n"},
		{"a wrong type spoils its object only", "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: eighty}]}\n---\n" + web,
			"Service shop/web\nerror f.yaml:1: Service bad: json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32\n"},
		{"broken YAML spoils its document only, and names the line", web + "---\na: 1\nb: [1\nc: 2\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n",
			"Node n1\nService shop/web\nerror f.yaml:8: not YAML: did not find expected ',' or ']'\n"},
		{"a key twice", "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nkind: Pod\n", "error f.yaml:4: not YAML: key \"kind\" already set in map\n"},
		{"no kind", "apiVersion: v1\n", "error f.yaml:1: not a Kubernetes object: apiVersion or kind is missing\n"},
		{"not an object", "- a\n- b\n", "error f.yaml:1: not a Kubernetes object: apiVersion, kind and metadata are expected at the top\n"},
		{"a name that no API server takes", "apiVersion: v1\nkind: Node\nmetadata: {name: \"n1; drop\"}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: Shop}\n",
			"error f.yaml:1: Node n1; drop: metadata.name \"n1; drop\" is no name: use lower-case letters, digits, dots and hyphens\n" +
				"error f.yaml:5: Service web: metadata.namespace \"Shop\" is no name: use lower-case letters, digits and hyphens\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := summary(Parse("f.yaml", []byte(tt.in))); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	m := Parse("f.yaml", []byte(web+`---
apiVersion: v1
kind: Service
metadata: {name: lb}
spec: {type: LoadBalancer, ports: [{port: 53, protocol: UDP, targetPort: dns}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
`))
	if len(m.Errors)+len(m.Warnings) > 0 || len(m.Objects.Services) != 2 || len(m.Objects.EndpointSlices) != 1 {
		t.Fatal(summary(m))
	}
	inner, lb, slice := m.Objects.Services[0].Spec, m.Objects.Services[1].Spec, m.Objects.EndpointSlices[0]
	if inner.Type != corev1.ServiceTypeClusterIP || inner.ExternalTrafficPolicy != "" || inner.Ports[0].Protocol != corev1.ProtocolTCP || inner.Ports[0].TargetPort.IntValue() != 80 {
		t.Errorf("ClusterIP Service: %+v", inner)
	}
	if lb.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyCluster || lb.Ports[0].Protocol != corev1.ProtocolUDP || lb.Ports[0].TargetPort.StrVal != "dns" {
		t.Errorf("LoadBalancer Service: %+v", lb)
	}
	if p := slice.Ports[0]; *p.Name != "" || *p.Protocol != corev1.ProtocolTCP || slice.Endpoints[0].Conditions.Ready != nil {
		t.Errorf("EndpointSlice: %+v", slice)
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"b.yaml": web, "a.yml": "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n", "c.json": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}`,
		"d.yaml": web + "---\nkind: [", "README.md": "not a manifest", ".hidden.yaml": "kind: [", "sub/e.yaml": "kind: [",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := `Node n1
Service shop/web
skipped DIR/c.json:1: v1 Pod p
error DIR/d.yaml:6: not YAML: did not find expected node content
error DIR/d.yaml:1: Service shop/web is defined twice, first at DIR/b.yaml:1: remove one
`
	if got := strings.ReplaceAll(summary(m), dir, "DIR"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if one, err := Read(filepath.Join(dir, "a.yml"), filepath.Join(dir, "b.yaml")); err != nil || summary(one) != "Node n1\nService shop/web\n" {
		t.Errorf("files: %v\n%s", err, summary(one))
	}
	if _, err := Read(filepath.Join(dir, "missing")); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a missing folder: %v", err)
	}
}

// TestWriteReads writes what was read, and reads it again: nothing is lost, and the order of the input does not matter.
func TestWriteReads(t *testing.T) {
	in := Parse("f.yaml", []byte(everything))
	if len(in.Errors)+len(in.Warnings)+len(in.Skipped) > 0 {
		t.Fatal(summary(in))
	}
	first := written(t, in.Objects)
	out := Parse("g.yaml", []byte(first))
	if got, want := summary(out), summary(in); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	slices.Reverse(out.Objects.Services)
	if second := written(t, out.Objects); second != first {
		t.Errorf("second\n%s\nfirst\n%s", second, first)
	}
	for _, want := range []string{`"kind":"Ingress"`, `"pathType":"Prefix"`, `"nodePort":30080`, `"creationTimestamp":"2026-01-01T00:00:00Z"`, `"podCIDRs":`,
		`"controller":"sallyport.io/ingress"`, `"10.244.1.5"`, `"tls.key":"a2V5"`} {
		if !strings.Contains(first, want) {
			t.Errorf("%q is not in\n%s", want, first)
		}
	}
	if in.Objects.Services[0].Kind != "Service" {
		t.Errorf("the object read was modified: %+v", in.Objects.Services[0].TypeMeta)
	}
}

// TestWriteSetsKind writes objects as they come from an API server, which have neither apiVersion nor kind.
func TestWriteSetsKind(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", ResourceVersion: "7", UID: "u"}}
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: "cluster"}}
	text := written(t, Cluster{Services: []*corev1.Service{s}, Namespaces: []*corev1.Namespace{system}})
	if got := summary(Parse("f.yaml", []byte(text))); got != "Namespace kube-system\nService shop/web\n" {
		t.Errorf("got %s of\n%s", got, text)
	}
	if strings.Contains(text, "resourceVersion") || strings.Contains(text, `"uid":"u"`) || !strings.Contains(text, `"uid":"cluster"`) {
		t.Errorf("want the UID of the cluster, no other and no resourceVersion:\n%s", text)
	}
	if s.Kind != "" || s.ResourceVersion != "7" || s.UID != "u" {
		t.Error("the object was modified")
	}
}

func written(t *testing.T, c Cluster) string {
	t.Helper()
	var b strings.Builder
	if err := Write(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const everything = `apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z", annotations: {a: b}}
spec: {type: NodePort, ports: [{name: http, port: 80, nodePort: 30080, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec: {rules: [{host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: sallyport}
spec: {controller: sallyport.io/ingress}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.5], conditions: {ready: true}}]
---
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: shop}
type: kubernetes.io/tls
data: {tls.crt: Y2VydA==}
stringData: {tls.key: key}
`

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte("kind: List\nitems: [a, {kind: b}]\n--- x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := Parse("f.yaml", data)
		for _, e := range slices.Concat(m.Errors, m.Warnings) {
			if e.Line < 1 || e.Line > strings.Count(string(data), "\n")+1 {
				t.Errorf("line %d of %d: %v", e.Line, strings.Count(string(data), "\n")+1, e)
			}
		}
		if out := Parse("g.yaml", []byte(written(t, m.Objects))); len(out.Errors) > 0 {
			t.Errorf("what was written does not read: %v", out.Errors)
		}
	})
}
