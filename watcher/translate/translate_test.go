package translate

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

var update = flag.Bool("update", false, "rewrite the want sections of the scenarios")

// scenarioOptions is a scenario's section "options".
type scenarioOptions struct {
	Reach                  model.Reach
	PodsReachable          []string // names of nodes
	IPv6PodsReachable      []string // the same
	AllowLoopbackEndpoints bool
	OwnAddresses           []netip.Addr
	ListenPorts            []ListenPort
	IPv6                   bool
	SCTP                   bool
	ProxyProtocol          bool
	KeepsSource            bool
	ExternalIPs            []netip.Prefix
	ClusterIPs             bool
	Zone                   string
	Unhealthy              []string // names of nodes
	TLS                    bool
	DefaultCertificate     objects.Name
	RedirectHTTPS          bool
	Sources                map[string]scenarioSource // by name of the cluster
}

// A scenarioSource is what a source tells beside its objects.
type scenarioSource struct {
	Denied   []objects.Denial
	Conflict string
	Stale    bool
}

func (s scenarioSource) tell(c *objects.Cluster) {
	c.Denied, c.Conflict, c.Stale = s.Denied, s.Conflict, s.Stale
}

func (s scenarioOptions) options() Options {
	o := Options{Reach: s.Reach, AllowLoopbackEndpoints: s.AllowLoopbackEndpoints, OwnAddresses: s.OwnAddresses, ListenPorts: s.ListenPorts,
		IPv6: s.IPv6, SCTP: s.SCTP, ProxyProtocol: s.ProxyProtocol, KeepsSource: s.KeepsSource, ExternalIPs: s.ExternalIPs,
		ClusterIPs: s.ClusterIPs, Zone: s.Zone, TLS: s.TLS, DefaultCertificate: s.DefaultCertificate, RedirectHTTPS: s.RedirectHTTPS}
	if s.PodsReachable != nil {
		o.PodsReachable = func(n model.ObjectRef) bool { return slices.Contains(s.PodsReachable, n.Name) }
		o.IPv6PodsReachable = func(n model.ObjectRef) bool { return slices.Contains(s.IPv6PodsReachable, n.Name) }
	}
	if s.Unhealthy != nil {
		o.NodeHealthy = func(n model.ObjectRef, _ uint16) bool { return !slices.Contains(s.Unhealthy, n.Name) }
	}
	return o
}

// A scenario is one file of testdata: a comment that says why, the manifests of one cluster (in), or of several
// (in.NAME, each a cluster of that name), options, and the snapshot wanted.
type scenario struct {
	file    string
	archive *txtar.Archive
	in      objects.Objects
	o       Options
	want    string
}

func readScenario(t testing.TB, file string) scenario {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := scenario{file: file, archive: archive}
	for _, f := range archive.Files {
		section, cluster, _ := strings.Cut(f.Name, ".")
		switch section {
		case "in":
			m := objects.Parse(file, f.Data)
			for _, err := range slices.Concat(m.Errors, m.Warnings) {
				t.Errorf("section %s: %v", f.Name, err)
			}
			m.Objects.Name = cluster
			s.in = append(s.in, m.Objects)
		case "options":
			var o scenarioOptions
			if err := yaml.UnmarshalStrict(f.Data, &o); err != nil {
				t.Fatalf("%s: options: %v", file, err)
			}
			s.o = o.options()
			for i := range s.in {
				o.Sources[s.in[i].Name].tell(&s.in[i])
			}
		case "want":
			s.want = string(f.Data)
		default:
			t.Fatalf("%s: unknown section %q", file, f.Name)
		}
	}
	if len(bytes.TrimSpace(archive.Comment)) == 0 {
		t.Errorf("%s does not say why", file)
	}
	return s
}

func scenarioFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in testdata (%v)", err)
	}
	return files
}

func text(t testing.TB, s *model.Snapshot) string {
	t.Helper()
	var b strings.Builder
	if err := s.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestScenarios(t *testing.T) {
	for _, file := range scenarioFiles(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			s := readScenario(t, file)
			got := text(t, Translate(s.in, s.o))
			if *update {
				s.rewrite(t, got)
				return
			}
			if got != s.want {
				t.Errorf("got\n%s\nwant\n%s", got, s.want)
			}
		})
	}
}

func (s scenario) rewrite(t *testing.T, got string) {
	t.Helper()
	want := txtar.File{Name: "want", Data: []byte(got)}
	i := slices.IndexFunc(s.archive.Files, func(f txtar.File) bool { return f.Name == "want" })
	if i < 0 {
		s.archive.Files = append(s.archive.Files, want)
	} else {
		s.archive.Files[i] = want
	}
	if err := os.WriteFile(s.file, txtar.Format(s.archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestOrderDoesNotMatter translates every scenario with its objects in other orders, as a cache lists them.
func TestOrderDoesNotMatter(t *testing.T) {
	for _, file := range scenarioFiles(t) {
		s := readScenario(t, file)
		want := text(t, Translate(s.in, s.o))
		r := rand.New(rand.NewPCG(1, 2))
		for range 10 {
			for i := range s.in {
				shuffle(r, &s.in[i])
			}
			if got := text(t, Translate(s.in, s.o)); got != want {
				t.Errorf("%s: shuffled\n%s\nwant\n%s", file, got, want)
				break
			}
		}
	}
}

func shuffle(r *rand.Rand, c *objects.Cluster) {
	shuffleSlice(r, c.Services)
	shuffleSlice(r, c.EndpointSlices)
	shuffleSlice(r, c.Nodes)
	shuffleSlice(r, c.Ingresses)
	shuffleSlice(r, c.IngressClasses)
	shuffleSlice(r, c.Secrets)
	shuffleSlice(r, c.Denied)
}

func shuffleSlice[T any](r *rand.Rand, s []T) {
	r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}

// TestInputsAreNotModified compares the inputs, written as manifests, before and after.
func TestInputsAreNotModified(t *testing.T) {
	for _, file := range scenarioFiles(t) {
		s := readScenario(t, file)
		before := manifests(t, s.in)
		Translate(s.in, s.o)
		if after := manifests(t, s.in); after != before {
			t.Errorf("%s: after\n%s\nbefore\n%s", file, after, before)
		}
	}
}

func manifests(t testing.TB, in objects.Objects) string {
	t.Helper()
	var b strings.Builder
	for _, c := range in {
		if err := objects.Write(&b, c); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

var reaches = []model.Reach{model.ReachPods, model.ReachNodes, model.ReachAuto}

// FuzzTranslate mutates manifests: whatever they say, translation does not panic, is repeatable and gives a snapshot
// whose services and statuses can be found, whose routes are free of duplicates and whose hosts have one certificate.
func FuzzTranslate(f *testing.F) {
	for _, file := range scenarioFiles(f) {
		s := readScenario(f, file)
		for reach := range reaches {
			f.Add([]byte(manifests(f, s.in)), reach, s.o.TLS)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, reach int, tls bool) {
		in := objects.Objects{objects.Parse("fuzz.yaml", data).Objects}
		o := Options{Reach: reaches[uint(reach)%uint(len(reaches))], TLS: tls, RedirectHTTPS: tls,
			DefaultCertificate: objects.Name{Namespace: "shop", Name: "shop-tls"}, Certificates: new(CertificateCache), Memo: new(Memo),
			IPv6: reach%2 == 0, SCTP: tls, ProxyProtocol: !tls, ClusterIPs: true, Zone: "a", ExternalIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
		s := Translate(in, o)
		if again := Translate(in, o); text(t, again) != text(t, s) {
			t.Error("two translations of the same objects differ")
		}
		for i := range s.Services {
			if s.Service(s.Services[i].Ref) != &s.Services[i] {
				t.Errorf("%v is not found", s.Services[i].Ref)
			}
			checkService(t, &s.Services[i], o)
		}
		for i := range s.Statuses {
			if s.Status(s.Statuses[i].Ref) != &s.Statuses[i] {
				t.Errorf("the status of %v is not found", s.Statuses[i].Ref)
			}
		}
		checkCertificates(t, s)
		for i := 1; i < len(s.Routes); i++ {
			if sameRequests(&s.Routes[i-1], &s.Routes[i]) {
				t.Errorf("duplicate route %+v", s.Routes[i])
			}
		}
	})
}

// checkService holds a Service to what model says of it.
func checkService(t *testing.T, s *model.Service, o Options) {
	t.Helper()
	for _, list := range [][]netip.Addr{s.RequestedVIPs, s.ExternalIPs, s.ClusterIPs} {
		for _, a := range list {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.Is6() && !o.IPv6 || len(list) > maxAddresses {
				t.Errorf("%v has address %v of %d", s.Ref, a, len(list))
			}
		}
	}
	if r := s.SourceRanges; r != nil {
		for i, p := range r.Prefixes {
			if p != p.Masked() || p.Addr().Is4In6() || i > 0 && (r.Prefixes[i-1].Overlaps(p) || p.Addr().Less(r.Prefixes[i-1].Addr())) {
				t.Errorf("%v has source ranges %v", s.Ref, r.Prefixes)
			}
		}
	}
	for _, p := range s.Ports {
		ordered := slices.IsSortedFunc(p.Destinations, func(a, b model.Destination) int { return a.Addr.Compare(b.Addr) })
		wrong := slices.ContainsFunc(p.Destinations, func(d model.Destination) bool {
			return !d.Addr.IsValid() || d.Addr.Addr().Zone() != "" || d.Addr.Addr().Is6() && !o.IPv6
		})
		if !ordered || wrong || p.Protocol == model.SCTP && !o.SCTP {
			t.Errorf("%v port %d/%s has destinations %v", s.Ref, p.Port, p.Protocol, p.Destinations)
		}
	}
}
