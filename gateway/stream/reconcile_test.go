package stream

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"sallyport/watcher/model"
)

func TestExternalIPs(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, 0, tcpEcho(t, "a"))
	svc.ExternalIPs = []netip.Addr{loopback()}
	e.mustReconcile(t, svc)
	dial(t, netip.AddrPortFrom(svc.ExternalIPs[0], servicePort).String()).mustLine(t, "a")
}

// The older Service has an address, or of equally old ones the first by name, wherever it stands in the snapshot; and also
// while it has no destinations, when its clients are to be refused.
func TestOlderServiceHasTheAddress(t *testing.T) {
	e := newEdge(t, Options{})
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	younger, older := service("a", model.TCP, 30001, tcpEcho(t, "younger")), service("b", model.TCP, 30001, tcpEcho(t, "older"))
	younger.Created, older.Created = noon, noon.Add(-time.Hour)
	reconcile := func(want string) {
		t.Helper()
		err := e.Reconcile(t.Context(), &model.Snapshot{Services: []model.Service{younger, older}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Reconcile = %v, want %q", err, want)
		}
	}
	reconcile("Service default/a: TCP " + e.at(30001) + " is taken by Service default/b")
	dial(t, e.at(30001)).mustLine(t, "older")
	older.Ports[0].Destinations = nil
	reconcile("is taken by Service default/b")
	mustRefuse(t, e.at(30001))
	older.Created = noon
	reconcile("Service default/b: TCP " + e.at(30001) + " is taken by Service default/a")
	dial(t, e.at(30001)).mustLine(t, "younger")
}

// One address may be several things to a Service.
func TestAddressThatAServiceHasTwice(t *testing.T) {
	e := newEdge(t, Options{})
	svc := service("web", model.TCP, servicePort, tcpEcho(t, "a"))
	svc.VIPs, svc.ExternalIPs = []netip.Addr{e.ip}, []netip.Addr{e.ip}
	svc.SourceRanges = rangesOf("10.0.0.0/8")
	e.mustReconcile(t, svc)
	for _, b := range e.listeners {
		if len(e.listeners) != 1 || b.ranges == nil {
			t.Errorf("%d listeners, ranges %v: want one, restricted as a VIP is", len(e.listeners), b.ranges)
		}
	}
}

// Every field that a target is made of gives the listener a new one.
func TestReconcileSeesEveryChange(t *testing.T) {
	e := newEdge(t, Options{SourceRangesOnNodePorts: true})
	svc := service("web", model.TCP, 30001, unused())
	svc.SourceRanges, svc.Affinity = rangesOf("10.0.0.0/8"), &model.Affinity{Timeout: time.Hour}
	targetNow := func() *target {
		e.mustReconcile(t, svc)
		for _, b := range e.listeners {
			return b.listener.(*tcpListener).target()
		}
		return nil
	}
	last := targetNow()
	for name, change := range map[string]func(){
		"destination": func() { svc.Ports[0].Destinations = endpointsOf("10.1.0.1") },
		"weight":      func() { svc.Ports[0].Destinations = []model.Destination{{Addr: unused(), Weight: 2}} },
		"ranges":      func() { svc.SourceRanges = rangesOf("10.0.0.0/8", "11.0.0.0/8") },
		"affinity":    func() { svc.Affinity = &model.Affinity{Timeout: time.Minute} },
		"PROXY":       func() { svc.ProxyProtocol = 2 },
		"port's name": func() { svc.Ports[0].Name = "http" },
	} {
		change()
		next := targetNow()
		if next == last {
			t.Errorf("%s: the listener keeps its target", name)
		}
		svc.SourceRanges = &model.SourceRanges{Prefixes: slices.Clone(svc.SourceRanges.Prefixes)}
		svc.Affinity = &model.Affinity{Timeout: svc.Affinity.Timeout}
		if last = targetNow(); last != next {
			t.Errorf("%s: an equal snapshot gives another target", name)
		}
	}
}

// inNamespace runs f in a network namespace of its own, which sockets made by f itself stay in. What other goroutines do
// is elsewhere: a proxy listens there and reaches destinations here.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("SALLYPORT_LAB") != "required" {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	defer func() {
		if err := netns.Set(here); err != nil {
			panic(err) // other goroutines would find themselves there
		}
	}()
	f()
}

// ip runs ip(8) with the arguments in line.
func ip(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", line, err, out)
	}
}

// Cluster IPs are no addresses of the edge. To listen on them needs no privilege; the route that leads them here does.
func TestClusterIPs(t *testing.T) {
	e := newEdge(t, Options{})
	web, dns := service("web", model.TCP, 0, tcpEcho(t, "a")), service("dns", model.UDP, 0, udpEcho(t, "b"))
	web.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")}
	dns.ClusterIPs = web.ClusterIPs
	inNamespace(t, func() {
		e.mustReconcile(t, web, dns)
		ip(t, "link set lo up")
		ip(t, "route add local 10.96.0.0/12 dev lo")
		ip(t, "route add local fd00:96::/108 dev lo")
		for _, a := range web.ClusterIPs {
			at := netip.AddrPortFrom(a, servicePort).String()
			dial(t, at).mustLine(t, "a")
			if got := ask(t, udpDial(t, at), "?"); got != "b:?" {
				t.Errorf("answer of %v = %q, want %q", a, got, "b:?")
			}
		}
	})
}

// BenchmarkReconcile is a snapshot of which nothing has changed.
func BenchmarkReconcile(b *testing.B) {
	e := newEdge(b, Options{})
	s := new(model.Snapshot)
	const services = 5000
	for i := range services {
		svc := service(fmt.Sprintf("s%05d", i), model.TCP, uint16(20000+i))
		svc.Ports[0].Destinations = endpointsOf("10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5")
		s.Services = append(s.Services, svc)
	}
	if err := e.Reconcile(b.Context(), s); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Reconcile(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}
