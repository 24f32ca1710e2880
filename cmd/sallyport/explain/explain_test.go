package explain

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"sallyport/lb"
	"sallyport/watcher/model"
	"sallyport/watcher/objects"
	"sallyport/watcher/translate"
)

var update = flag.Bool("update", false, "rewrite the explanations of the scenarios")

// scenarioOptions is a scenario's section "options".
type scenarioOptions struct {
	Reach              model.Reach
	PodsReachable      []string // names of nodes
	NoTLS              bool
	DefaultCertificate objects.Name
	EdgeAddresses      []netip.Addr
	L7Addresses        []netip.Addr
	NodePortAddresses  []netip.Prefix
	Pools              []string
	Dataplane          string
	Stale              bool
	HTTPSPort          uint16
	ExternalIPs        []netip.Prefix
	ClusterIPs         bool
	Zone               string
	Unhealthy          []string // names of nodes
	RangesOnNodePorts  bool
}

// ports of the edge in all scenarios.
const (
	httpPort  = 80
	adminPort = 9440
)

func (s scenarioOptions) build(t testing.TB, in objects.Objects) (*model.Snapshot, Options) {
	t.Helper()
	in[0].Stale = s.Stale
	o := Options{HTTPPort: httpPort, HTTPSPort: s.HTTPSPort, EdgeAddresses: s.EdgeAddresses, L7Addresses: s.L7Addresses, NodePortAddresses: s.NodePortAddresses,
		ListenPorts: map[uint16]string{adminPort: "admin"}, Dataplane: s.Dataplane, SourceRangesOnNodePorts: s.RangesOnNodePorts, Now: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)}
	if !s.NoTLS && s.HTTPSPort == 0 {
		o.HTTPSPort = 443
	}
	for _, p := range s.Pools {
		r, err := lb.ParseRange(p)
		if err != nil {
			t.Fatal(err)
		}
		o.Pools = append(o.Pools, lb.Pool{Name: "front", Ranges: []lb.Range{r}})
	}
	snapshot := translate.Translate(in, translate.Options{Reach: s.Reach, IPv6: true, SCTP: true, ProxyProtocol: o.Dataplane == userspace, KeepsSource: true,
		ExternalIPs: s.ExternalIPs, ClusterIPs: s.ClusterIPs, Zone: s.Zone, TLS: !s.NoTLS, RedirectHTTPS: true, DefaultCertificate: s.DefaultCertificate,
		PodsReachable: func(n model.ObjectRef) bool { return strings.Contains(strings.Join(s.PodsReachable, " "), n.Name) },
		NodeHealthy:   func(n model.ObjectRef, _ uint16) bool { return !slices.Contains(s.Unhealthy, n.Name) },
		ListenPorts:   []translate.ListenPort{{Protocol: model.TCP, Port: adminPort, What: "edge.admin.address"}}})
	lb.Assign(snapshot, o.Pools)
	snapshot.Generation = 7
	return snapshot, o
}

// A scenario is one file of testdata: a comment that says why, the manifests of one cluster (in) or of several (in.NAME),
// options, and then a section for each target, which is its name, with the explanation wanted.
type scenario struct {
	archive  *txtar.Archive
	snapshot *model.Snapshot
	o        Options
}

func readScenario(t testing.TB, file string) scenario {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var in objects.Objects
	var o scenarioOptions
	for _, f := range archive.Files {
		switch section, cluster, _ := strings.Cut(f.Name, "."); {
		case section == "in":
			m := objects.Parse(file, f.Data)
			if len(m.Errors)+len(m.Warnings) > 0 {
				t.Fatalf("%v %v", m.Errors, m.Warnings)
			}
			m.Objects.Name = cluster
			in = append(in, m.Objects)
		case f.Name == "options":
			if err := yaml.UnmarshalStrict(f.Data, &o); err != nil {
				t.Fatalf("%s: options: %v", file, err)
			}
		}
	}
	if len(in) == 0 || len(bytes.TrimSpace(archive.Comment)) == 0 {
		t.Fatalf("%s has no objects, or does not say why", file)
	}
	s := scenario{archive: archive}
	s.snapshot, s.o = o.build(t, in)
	return s
}

func isTarget(section string) bool { return strings.Contains(section, "/") }

func scenarioFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in testdata (%v)", err)
	}
	return files
}

func TestScenarios(t *testing.T) {
	for _, file := range scenarioFiles(t) {
		s := readScenario(t, file)
		targets := 0
		for i, f := range s.archive.Files {
			if !isTarget(f.Name) {
				continue
			}
			targets++
			t.Run(filepath.Base(file)+" "+f.Name, func(t *testing.T) {
				e, err := Explain(s.snapshot, s.o, f.Name)
				if err != nil {
					t.Fatal(err)
				}
				got := text(t, e)
				if far := overTheSocket(t, e); far != got {
					t.Errorf("decoded from JSON\n%s\nwant\n%s", far, got)
				}
				if *update {
					s.archive.Files[i].Data = []byte(got)
				} else if got != string(f.Data) {
					t.Errorf("got\n%s\nwant\n%s", got, f.Data)
				}
			})
		}
		if targets == 0 {
			t.Errorf("%s explains nothing", file)
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(s.archive), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func text(t testing.TB, e Explanation) string {
	t.Helper()
	var b strings.Builder
	if err := e.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// overTheSocket is the text that a client makes of the JSON that it is sent.
func overTheSocket(t testing.TB, e Explanation) string {
	t.Helper()
	sent, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var received Explanation
	if err := json.Unmarshal(sent, &received); err != nil {
		t.Fatal(err)
	}
	return text(t, received)
}

// TestJSON holds the names of the fields, which scripts depend on.
func TestJSON(t *testing.T) {
	s := readScenario(t, "testdata/http.txt")
	e, err := Explain(s.snapshot, s.o, "https://shop.example.com/cart")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/cart.json"
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}

func TestTargetErrors(t *testing.T) {
	s := readScenario(t, "testdata/clusters.txt")
	for _, tt := range []struct{ target, want string }{
		{"", `"" is neither a URL (http://shop.example.com/cart), a connection (tcp://192.0.2.10:443, udp://..., sctp://...) nor an object (service/shop/web, ingress/shop/web)`},
		{"shop.example.com", `"shop.example.com" is neither a URL (http://shop.example.com/cart), a connection (tcp://192.0.2.10:443, udp://..., sctp://...) nor an object (service/shop/web, ingress/shop/web)`},
		{"ftp://shop.example.com", `"ftp://shop.example.com": scheme "ftp" is not http, https, tcp, udp or sctp: try http://shop.example.com/cart or tcp://192.0.2.10:443`},
		{"http:///cart", `http:///cart names no host: try http://shop.example.com/cart`},
		{"http://shop.example.com:0/", `http://shop.example.com:0/: "0" is not a port: use 1 to 65535`},
		{"tcp://shop.example.com:80", `tcp://shop.example.com:80 is not an IP address and a port: try tcp://192.0.2.10:443 or tcp://[2001:db8::1]:443`},
		{"udp://192.0.2.1", `udp://192.0.2.1 is not an IP address and a port: try udp://192.0.2.10:443 or udp://[2001:db8::1]:443`},
		{"tcp://192.0.2.1:0", `tcp://192.0.2.1:0 is not an IP address and a port: try tcp://192.0.2.10:443 or tcp://[2001:db8::1]:443`},
		{"tcp://[fe80::1%eth0]:80", `tcp://[fe80::1%eth0]:80 is not an IP address and a port: try tcp://192.0.2.10:443 or tcp://[2001:db8::1]:443`},
		{"pod/shop/web", `"pod/shop/web": kind "pod" is not service or ingress: try service/shop/web`},
		{"service/web", `"service/web" is neither a URL (http://shop.example.com/cart), a connection (tcp://192.0.2.10:443, udp://..., sctp://...) nor an object (service/shop/web, ingress/shop/web)`},
		{"service/shop/web", `Service shop/web is in more than one cluster: say which, as in service/east:shop/web`},
		{"ingress/shop/web", `Ingress shop/web is in more than one cluster: say which, as in ingress/east:shop/web`},
	} {
		if _, err := Explain(s.snapshot, s.o, tt.target); err == nil || err.Error() != tt.want {
			t.Errorf("%s:\ngot  %v\nwant %s", tt.target, err, tt.want)
		}
	}
}

// TestNothingIsSecret looks for the keys of the Secrets in all that is explained.
func TestNothingIsSecret(t *testing.T) {
	for _, file := range scenarioFiles(t) {
		s := readScenario(t, file)
		var said strings.Builder
		for _, f := range s.archive.Files {
			if isTarget(f.Name) {
				e, _ := Explain(s.snapshot, s.o, f.Name)
				j, _ := json.Marshal(e)
				said.WriteString(text(t, e) + string(j))
			}
		}
		for _, f := range s.archive.Files {
			_, key, _ := strings.Cut(string(f.Data), "BEGIN PRIVATE KEY-----")
			for line := range strings.Lines(key) {
				if line = strings.TrimSpace(line); len(line) > 40 && strings.Contains(said.String(), line) {
					t.Errorf("%s: %s is told", file, line)
				}
			}
		}
	}
}

func TestWriteTextFails(t *testing.T) {
	if err := new(Explanation).WriteText(brokenPipe{}); !errors.Is(err, errBroken) {
		t.Errorf("a failed write gives %v", err)
	}
}

var errBroken = errors.New("broken pipe")

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errBroken }

// FuzzExplain explains whatever is asked: it does not panic, a verdict comes with a summary, and the normal form of a target
// is explained alike.
func FuzzExplain(f *testing.F) {
	var all []scenario
	for _, file := range scenarioFiles(f) {
		s := readScenario(f, file)
		all = append(all, s)
		for _, section := range s.archive.Files {
			if isTarget(section.Name) {
				f.Add(section.Name)
			}
		}
	}
	f.Fuzz(func(t *testing.T, target string) {
		for _, s := range all {
			e, err := Explain(s.snapshot, s.o, target)
			if err != nil {
				continue
			}
			if e.Verdict == "" || e.Summary == "" {
				t.Errorf("%q: %+v", target, e)
			}
			again, err := Explain(s.snapshot, s.o, e.Target)
			if err != nil || text(t, again) != text(t, e) {
				t.Errorf("%q is %q, which is explained otherwise: %v\n%s\n%s", target, e.Target, err, text(t, e), text(t, again))
			}
		}
	})
}

// edgeOf is a snapshot with one route over three backends: one with most of the weight, one without endpoints, one that is gone.
func edgeOf() *model.Snapshot {
	ref := func(kind, name string) model.ObjectRef {
		return model.ObjectRef{Kind: kind, Namespace: "shop", Name: name}
	}
	service := func(name string, to ...model.Destination) model.Service {
		return model.Service{Ref: ref("Service", name), Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, Destinations: to}}}
	}
	backend := func(name string, weight int) model.Backend {
		return model.Backend{Service: ref("Service", name), Port: 80, Weight: weight}
	}
	return &model.Snapshot{
		Services: []model.Service{service("a", model.Destination{Addr: netip.MustParseAddrPort("10.244.1.5:80"), Reach: model.ReachPods}), service("b")},
		Routes: []model.Route{{Ref: ref("Ingress", "split"), Host: "shop.example.com", Match: model.MatchDefault,
			Backends: []model.Backend{backend("a", 3), backend("b", 1), backend("gone", 0)}}},
		Certificates: []model.Certificate{{Ref: ref("Secret", "old"), Default: true, NotAfter: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}},
		Problems: []model.Problem{{Object: model.ObjectRef{Kind: "Cluster", Name: "default"}, Field: "EndpointSlice", Reason: model.ReasonKindForbidden, Message: "no"},
			{Object: ref("Ingress", "split"), Reason: model.ReasonUnsupported, Message: "why"}},
	}
}

func explain(t *testing.T, s *model.Snapshot, o Options, target string) string {
	t.Helper()
	e, err := Explain(s, o, target)
	if err != nil {
		t.Fatal(err)
	}
	return text(t, e)
}

func TestWeights(t *testing.T) {
	const want = `http://shop.example.com/: SERVED
Ingress shop/split sends it to Service shop/a port 80 and Service shop/b port 80, 1 destination

  listener     L7 takes http on port 80
  host         shop.example.com is named by Ingress shop/split
  path         the default backend of shop.example.com takes /, by Ingress shop/split
  backend      Service shop/gone port 80 does not exist

Service shop/a port 80/TCP, 75 % of the requests
  -> 10.244.1.5:80          reach pods

Service shop/b port 80/TCP, 25 % of the requests
  -> nothing

problems
  - Ingress shop/split: why (Unsupported)

hints
  - Service shop/b port 80/TCP has no endpoints: compare its selector and targetPort with the pods: kubectl -n shop get endpointslices -l kubernetes.io/service-name=b
`
	if got := explain(t, edgeOf(), Options{HTTPPort: 80}, "http://shop.example.com/"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestProblems: those of the options replace the snapshot's, and what ails a whole cluster is told where nothing is served.
func TestProblems(t *testing.T) {
	o := Options{HTTPPort: 80}
	if got := explain(t, edgeOf(), o, "http://nowhere.example.org/"); !strings.Contains(got, "Cluster default: EndpointSlice: no (KindForbidden)") {
		t.Errorf("the cluster's problem is missing:\n%s", got)
	}
	if got := explain(t, edgeOf(), o, "http://shop.example.com/"); strings.Contains(got, "KindForbidden") {
		t.Errorf("the cluster's problem is told of what is served:\n%s", got)
	}
	o.Problems = []model.Problem{{Object: model.ObjectRef{Kind: "Service", Namespace: "shop", Name: "a"}, Reason: model.ReasonAddressTaken, Message: "taken"}}
	if got := explain(t, edgeOf(), o, "service/shop/a"); !strings.Contains(got, "Service shop/a: taken (AddressTaken)") || strings.Contains(got, "KindForbidden") {
		t.Errorf("the problems of the options were not used:\n%s", got)
	}
}

func TestExpiredCertificate(t *testing.T) {
	const expired = "the certificate of Secret shop/old has expired"
	o := Options{HTTPSPort: 443}
	if got := explain(t, edgeOf(), o, "https://shop.example.com/"); strings.Contains(got, expired) {
		t.Errorf("judged without a clock:\n%s", got)
	}
	o.Now = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	if got := explain(t, edgeOf(), o, "https://shop.example.com/"); !strings.Contains(got, expired) {
		t.Errorf("want %q in\n%s", expired, got)
	}
}

// TestTakenVIP: a VIP that the edge refuses a Service, which only a Problem of the kernel's reconciler tells, leads where the
// address led before.
func TestTakenVIP(t *testing.T) {
	edge, node, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.11"), netip.MustParseAddr("2001:db8::1")
	s := edgeOf()
	web := &s.Services[0]
	web.VIPs = []netip.Addr{edge, node, six, netip.MustParseAddr("192.0.2.10")}
	o := Options{HTTPPort: 80, EdgeAddresses: []netip.Addr{edge}, Dataplane: "iptables"}
	for a, why := range map[netip.Addr]model.Reason{edge: model.ReasonAddressTaken, node: model.ReasonAddressTaken, six: model.ReasonUnsupported} { // in the words of package rules
		o.Problems = append(o.Problems, model.Problem{Object: web.Ref, Reason: why, Message: a.String() + " is not served: it is taken: choose another"})
	}
	for _, tt := range []struct{ target, want string }{
		{"tcp://192.0.2.1:80", "SERVED\nthe edge itself listens on port 80"},
		{"http://192.0.2.1/", "NONE\nthe request is answered 404"},
		{"tcp://10.0.0.11:80", "NONE\n10.0.0.11 is no address of this edge, nor a VIP"},
		{"tcp://[2001:db8::1]:80", "NONE\n2001:db8::1 is no address of this edge, nor a VIP"}, // which has no IPv6
		{"tcp://192.0.2.10:80", "SERVED\nVIP 192.0.2.10:80 leads to Service shop/a"},
		{"service/shop/a", "SERVED\nService shop/a is reached by tcp://192.0.2.10:80, http://shop.example.com"},
	} {
		if got := explain(t, s, o, tt.target); !strings.HasPrefix(got, tt.target+": "+tt.want) {
			t.Errorf("%s: got\n%s\nwant %s", tt.target, got, tt.want)
		}
	}
}

// TestNamesInCertificatesAreHarmless: who makes a certificate chooses what it is for, escape sequences of terminals included.
func TestNamesInCertificatesAreHarmless(t *testing.T) {
	s := edgeOf()
	s.Certificates[0].Pair = &tls.Certificate{Leaf: &x509.Certificate{DNSNames: []string{"\x1b[2J", "b", "c", "d", "e", "f"}}}
	got := explain(t, s, Options{HTTPSPort: 443}, "https://shop.example.com/")
	if want := `but for "\x1b[2J", "b", "c", "d", "e" and 1 more: clients refuse it`; !strings.Contains(got, want) {
		t.Errorf("want %s in\n%s", want, got)
	}
}

// TestProblemsOfSlices: those of a Service's EndpointSlices are told, and not those of another whose name begins alike.
func TestProblemsOfSlices(t *testing.T) {
	s := edgeOf()
	other := s.Services[0]
	other.Ref.Name = "a-b"
	s.Services = []model.Service{s.Services[0], other, s.Services[1]}
	for _, name := range []string{"a-x1", "a-b-x2", "b-x3"} {
		s.Problems = append(s.Problems, model.Problem{Object: model.ObjectRef{Kind: "EndpointSlice", Namespace: "shop", Name: name},
			Reason: model.ReasonInvalidField, Message: "of " + name})
	}
	for service, want := range map[string]string{"a": "of a-x1", "a-b": "of a-b-x2"} {
		got := explain(t, s, Options{}, "service/shop/"+service)
		if !strings.Contains(got, want) || strings.Count(got, "EndpointSlice ") != 1 {
			t.Errorf("service/shop/%s: want the problem %q alone\n%s", service, want, got)
		}
	}
}
