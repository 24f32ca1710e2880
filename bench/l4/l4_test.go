package main

import (
	"encoding/xml"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/bench/lab/cluster"
	"sallyport/bench/lab/network"
)

// small is a plan that has all measures in a few seconds.
var small = plan{
	sizes: []int{40}, endpoints: 3, starts: 1, rounds: 2, connections: 20,
	changes: 2, changeTime: time.Second, changeGap: 10 * time.Millisecond, churnAt: 40, churnTime: 500 * time.Millisecond, flows: 20,
	failoverFlows: 48,
}

// TestSmallRun runs everything once, and looks at no time: that the numbers are there, and can be true.
func TestSmallRun(t *testing.T) {
	cluster.RequireLab(t)
	if err := requirements(); err != nil {
		t.Fatal(err)
	}
	const name = "bench-l4-test"
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	b, err := measure(t.Context(), options{plan: small}, name, log)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := network.Namespaces(name); err != nil || len(left) > 0 {
		t.Errorf("after the run there are namespaces %v (%v)", left, err)
	}
	if want := 5 - len(b.left); len(b.results) != want || want < 4 {
		t.Fatalf("%d results, want %d; left out: %v", len(b.results), want, b.left)
	}
	for _, x := range b.results {
		t.Run(x.contender+" at "+count(x.services), func(t *testing.T) { checkResult(t, x) })
	}
	for _, f := range b.failovers {
		if good := f.survived*100 >= f.flows*99; good == f.ownAddress || f.flows != small.failoverFlows {
			t.Errorf("death of an edge: %+v", f)
		}
	}
	if want := 4 - len(b.left); len(b.failovers) != want {
		t.Errorf("%d deaths, want %d", len(b.failovers), want)
	}
	r := report{plan: small, results: b.results, routing: b.routing, left: b.left}
	for _, x := range b.results {
		if !strings.Contains(string(r.markdown()), "| "+x.contender+" | "+count(x.services)+" |") {
			t.Errorf("the report lacks %s at %d Services", x.contender, x.services)
		}
	}
}

func checkResult(t *testing.T, x *result) {
	connections := small.rounds * small.connections
	for what, s := range map[string]struct {
		sample
		atLeast int
	}{
		"connect first": {x.connect[0], connections}, "connect middle": {x.connect[1], connections}, "connect last": {x.connect[2], connections},
		"connect reference": {x.reference, connections}, "node port": {x.nodePort, connections},
		"forwarded": {x.forwarded, connections}, "local": {x.local, connections}, "change": {x.change, 1},
	} {
		if s.n < s.atLeast || s.p50 <= 0 || s.p99 < s.p50 {
			t.Errorf("%s: %d values, p50 %v, p99 %v: want %d or more, in order", what, s.n, s.p50, s.p99, s.atLeast)
		}
	}
	if (x.churn.n > 0) != (x.services == small.churnAt) {
		t.Errorf("%d changes under churn at %d Services", x.churn.n, x.services)
	}
	if x.first() <= 0 || x.applied() <= 0 || x.cpu() <= 0 {
		t.Errorf("from nothing: first connection %v, applied %v, CPU %v", x.first(), x.applied(), x.cpu())
	}
	if x.usage.resident < 10<<20 || x.usage.peak < x.usage.resident || x.usage.cpu < x.cpu() {
		t.Errorf("usage %+v, after CPU time %v", x.usage, x.cpu())
	}
	if x.survived != small.flows {
		t.Errorf("%d of %d connections survived", x.survived, small.flows)
	}
}

func TestSummarize(t *testing.T) {
	values := make([]time.Duration, 200)
	for i := range values {
		values[i] = time.Duration(200 - i)
	}
	if got, want := summarize(values), (sample{p50: 101, p99: 199, n: 200}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := summarize(values[:20]), (sample{p50: 191, p99: 200, n: 20}); got != want {
		t.Errorf("of few: got %+v, want %+v", got, want)
	}
	if got := summarize(nil); got != (sample{}) {
		t.Errorf("of none: got %+v", got)
	}
	rounds := []sample{{10, 20, 5}, {900, 9000, 5}, {11, 19, 5}}
	if got, want := medianOf(rounds), (sample{11, 20, 15}); got != want {
		t.Errorf("of rounds: got %+v, want %+v", got, want)
	}
}

// results are made up: two contenders at three sizes.
func results() report {
	at := func(p50 time.Duration) sample { return sample{p50 * time.Microsecond, 2 * p50 * time.Microsecond, 10} }
	r := report{plan: plan{sizes: []int{1, 10_000, 30_000}, flows: 7}}
	for i, n := range r.plan.sizes {
		for k, name := range []string{"kube-proxy nftables", "sallyport iptables-nft"} {
			r.results = append(r.results, &result{
				contender: name, services: n, connect: [3]sample{at(20), at(22), at(21)}, reference: at(20), survived: 7, change: at(100_000),
				starts: []programming{{first: time.Duration(1+i) * 10 * time.Second, applied: time.Duration(6*(1-k)+1) * time.Second}},
				usage:  usage{resident: 151 << 20},
			})
		}
	}
	return r
}

func TestBars(t *testing.T) {
	var b strings.Builder
	for _, x := range results().results {
		if x.contender == "sallyport iptables-nft" {
			for _, row := range results().barsOf(x) {
				b.WriteString(strings.Join(slices.Delete(row, 1, 2), "; ") + "\n")
			}
		}
	}
	const want = `from nothing, kube-proxy nftables against us; >= 5; 7.00; yes
one endpoint, p99; <= 300 ms; 200ms; yes
memory; <= 150 MB; 151 MB; no
connections that survive kill -9; 7; 7; yes
connect time at 30,000 Services against 1; <= 1.1; 1.10; yes
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestReportIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	if err := results().write(dir); err != nil {
		t.Fatal(err)
	}
	plot, err := os.Open(filepath.Join(dir, "l4.svg"))
	if err != nil {
		t.Fatal(err)
	}
	defer plot.Close()
	lines := 0
	for d := xml.NewDecoder(plot); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("l4.svg: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 4 {
		t.Errorf("l4.svg has %d curves, want 4: 2 contenders in 2 charts", lines)
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-services 1,20", "<nil>"},
		{"-services 0", `--services: "0" is not a number from 1 to 100000`},
		{"-services 20,1", "--services: 20,1 is not ascending"},
		{"-services 1 more", `unexpected argument "more"`},
	} {
		if _, err := parse(strings.Fields(tt.args)); tt.want != "<nil>" && (err == nil || err.Error() != tt.want) || tt.want == "<nil>" && err != nil {
			t.Errorf("%s: got %v, want %s", tt.args, err, tt.want)
		}
	}
}

func TestParseMetrics(t *testing.T) {
	const page = "# HELP a b\n# TYPE a counter\na 1.5\na_seconds_sum{ip_family=\"IPv4\"} 0.25\nb{le=\"+Inf\"} +Inf\n"
	m := parseMetrics(page)
	if m["a"] != 1.5 || m.seconds(`a_seconds_sum{ip_family="IPv4"}`) != 250*time.Millisecond || m.seconds("missing") != 0 {
		t.Errorf("got %v", m)
	}
}

func TestPlacesByAddressAreInside(t *testing.T) {
	for n, want := range map[int][3]int{1: {0, 0, 0}, 2: {0, 1, 1}, 1000: {0, 500, 999}} {
		if got := byAddress(n); got != want {
			t.Errorf("%d: got %v, want %v", n, got, want)
		}
	}
	if at := vip(0); at != netip.MustParseAddrPort("198.18.0.1:80") {
		t.Errorf("the first VIP is %v", at)
	}
}
