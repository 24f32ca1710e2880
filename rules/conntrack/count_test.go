package conntrack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/rules/netlab"
	"sallyport/rules/scenario"
)

// scrape returns the metrics by name and the values of those labels that are not empty.
func scrape(t testing.TB, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() == "port" || l.GetName() == "direction" {
					key += " " + l.GetValue()
				}
			}
			got[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}

// until waits for a condition.
func until(t testing.TB, what string, met func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !met(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestCounts(t *testing.T) {
	for _, f := range families {
		for _, at := range [][2]string{{f.vip, "53"}, {f.edge, "30053"}} {
			t.Run(f.name+"/"+at[1], func(t *testing.T) {
				n := newNetwork(t)
				n.echo(t, f)
				n.translate(t, f, "tcp", f.pods[0])
				netlab.In(t, n.edge, func() { netlab.Run(t, "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1") })
				registry := prometheus.NewRegistry()
				reconcile(t, newTracker(t, n, registry), dns("TCP", 0))
				if got := scrape(t, registry); slices.ContainsFunc(keys(got), func(k string) bool { return strings.HasPrefix(k, "sallyport_l4") }) {
					t.Errorf("a service port without traffic is told of: %v", got)
				}
				client := n.dial(t, "tcp", at[0], at[1])
				for range 10 {
					if got := client.ask(); got != "?" {
						t.Fatalf("answered by %q", got)
					}
				}
				live := scrape(t, registry)
				for key, want := range map[string]float64{"sallyport_l4_connections_total 53": 1, "sallyport_l4_connections 53": 1} {
					if live[key] != want {
						t.Errorf("%s is %v, want %v", key, live[key], want)
					}
				}
				for _, direction := range []string{"in", "out"} {
					if got := live["sallyport_l4_packets_total "+direction+" 53"]; got < 10 || got > 30 {
						t.Errorf("%v packets %s, of 10 requests", got, direction)
					}
					if got := live["sallyport_l4_bytes_total "+direction+" 53"]; got < 10*41 || got > 30*80 {
						t.Errorf("%v bytes %s, of 10 requests", got, direction)
					}
				}
				if live["sallyport_conntrack_entries"] < 1 || live["sallyport_conntrack_max"] < 1024 {
					t.Errorf("entries and max are %v", live)
				}
				client.Close()
				until(t, "the connection is not open", func() bool { return scrape(t, registry)["sallyport_l4_connections 53"] == 0 })
				until(t, "its entry is gone", func() bool { return !strings.Contains(n.entries(t, "tcp"), "dport="+at[1]) })
				ended := scrape(t, registry)
				for key, value := range live {
					if strings.HasSuffix(key, "53") && strings.Contains(key, "_total") && ended[key] < value {
						t.Errorf("%s was %v and is %v", key, value, ended[key])
					}
				}
				if got := ended["sallyport_l4_connections_total 53"]; got != 1 {
					t.Errorf("%v connections in the end", got)
				}
			})
		}
	}
}

func keys(m map[string]float64) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	return list
}

// Counting goes on from zero where another process was before.
func TestCountsFromStart(t *testing.T) {
	n, f := newNetwork(t), families[0]
	n.echo(t, f)
	n.translate(t, f, "tcp", f.pods[0])
	client := n.dial(t, "tcp", f.vip, "53")
	client.ask()
	registry := prometheus.NewRegistry()
	reconcile(t, newTracker(t, n, registry), dns("TCP", 0))
	before := scrape(t, registry)
	client.ask()
	after := scrape(t, registry)
	for key, want := range map[string][2]float64{
		"sallyport_l4_connections 53":       {1, 1},
		"sallyport_l4_connections_total 53": {0, 0},
		"sallyport_l4_packets_total in 53":  {0, 2},
	} {
		if got := [2]float64{before[key], after[key]}; got[0] != want[0] || got[1] < want[1] || got[1] > want[1]+1 {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
}

// make puts flows of UDP from as many clients into the edge's table, as rules do that mark them. dst gives what they are
// sent to; nil is the service port.
func (n *network) make(t testing.TB, count int, mark uint32, dst func(i int) netip.AddrPort) {
	t.Helper()
	if dst == nil {
		dst = func(int) netip.AddrPort { return netip.MustParseAddrPort(families[0].vip + ":53") }
	}
	h, err := netlink.NewHandleAt(n.edge, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for i := range count {
		client, port := net.IPv4(10, 9, byte(i>>8), byte(i)).To4(), uint16(10000+i>>16)
		err := h.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
			FamilyType: unix.AF_INET,
			Forward:    netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: client, DstIP: dst(i).Addr().AsSlice(), SrcPort: port, DstPort: dst(i).Port()},
			Reverse:    netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: net.ParseIP(families[0].pods[0]).To4(), DstIP: client, SrcPort: 53, DstPort: port},
			TimeOut:    600,
			Mark:       mark,
		})
		if err != nil {
			t.Fatalf("make flow %d: %v", i, err)
		}
	}
}

// The kernel tells only of flows with the mark.
func TestEventsAreFiltered(t *testing.T) {
	n := newNetwork(t)
	var ends *events
	netlab.In(t, n.edge, func() {
		var err error
		if ends, err = listen(0x53000000, 0xff000000); err != nil {
			t.Fatal(err)
		}
	})
	defer ends.close()
	for _, mark := range []uint32{0, 0x54000000, 0x53000007, 0x00000053, 0x53000008} {
		n.make(t, 1, mark, nil)
		netlab.In(t, n.edge, func() { netlab.Run(t, "conntrack", "-F") })
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var marks []uint32
	err := ends.follow(ctx, func(f *flow) {
		if marks = append(marks, f.mark); f.mark == 0x53000008 {
			stop()
		}
	}, func() { t.Error("overrun") })
	if want := []uint32{0x53000007, 0x53000008}; err != nil || !slices.Equal(marks, want) {
		t.Errorf("told of %x, %v; want %x", marks, err, want)
	}
}

// When more flows end than can be told of, that is counted, and what they counted for stays.
func TestOverrun(t *testing.T) {
	const flows = 2000
	n := newNetwork(t)
	registry := prometheus.NewRegistry()
	var tr *Tracker
	netlab.In(t, n.edge, func() {
		var err error
		if tr, err = New(Options{Mark: 0x53000000, MarkMask: 0xff000000, Metrics: registry}); err != nil {
			t.Fatal(err)
		}
	})
	defer tr.Close()
	reconcile(t, tr, dns("UDP", 0))
	n.make(t, flows, 0x53000000, nil)
	if got := scrape(t, registry)["sallyport_l4_connections_total 53"]; got != flows {
		t.Fatalf("%v connections, want %d", got, flows)
	}
	raw, err := tr.events.socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	if err != nil {
		t.Fatal(err)
	}
	netlab.In(t, n.edge, func() { netlab.Run(t, "conntrack", "-F") })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- tr.Run(ctx) }()
	until(t, "the overrun is noticed", func() bool { return scrape(t, registry)["sallyport_conntrack_overruns_total"] > 0 })
	if got := scrape(t, registry)["sallyport_l4_connections_total 53"]; got != flows {
		t.Errorf("%v connections after the overrun, want %d", got, flows)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// Two clusters may have Services of one name, and names that are no text must cost no other metric.
func TestMetricsOfAnyName(t *testing.T) {
	n := newNetwork(t)
	registry := prometheus.NewRegistry()
	tr := newTracker(t, n, registry)
	odd := dns("UDP", 0)
	odd.Ports[0].Name = "\xff"
	reconcile(t, tr, odd, scenario.Service("other", "198.51.100.54", "UDP 53 0: 10.1.0.2:53"))
	n.make(t, 1, 0x53000000, nil)
	if got := scrape(t, registry); got["sallyport_conntrack_entries"] != 1 {
		t.Errorf("got %s", fmt.Sprint(got))
	}
	second := dns("UDP", 0)
	second.Ref.Cluster = "b"
	reconcile(t, tr, second)
	if got := scrape(t, registry); got["sallyport_l4_connections 53"] != 1 {
		t.Errorf("got %s", fmt.Sprint(got))
	}
}

// A scrape that cannot read the table tells what the last one did.
func TestScrapeWithoutTable(t *testing.T) {
	n := newNetwork(t)
	registry := prometheus.NewRegistry()
	tr := newTracker(t, n, registry)
	reconcile(t, tr, dns("UDP", 0))
	n.make(t, 3, 0x53000000, nil)
	before := scrape(t, registry)
	tr.table.close()
	after := scrape(t, registry)
	if after["sallyport_l4_connections_total 53"] != 3 || after["sallyport_l4_connections 53"] != before["sallyport_l4_connections 53"] {
		t.Errorf("%v is told after %v", after, before)
	}
	if got := scrape(t, registry)["sallyport_conntrack_read_errors_total"]; got == 0 {
		t.Error("the error is not counted")
	}
}
