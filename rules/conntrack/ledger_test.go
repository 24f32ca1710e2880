package conntrack

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var web = series{namespace: "default", service: "web", port: "80", protocol: "TCP"}

// book is a ledger of one service port, which reads a table of flows of so many bytes each.
type book struct {
	ledger
	now   time.Time
	table []uint64
}

func bytesFlow(bytes uint64) *flow {
	f := flowOf(unix.IPPROTO_TCP, "198.51.100.10:80", "10.1.0.2:80")
	f.in = counter{packets: 1, bytes: bytes}
	return &f
}

func (b *book) read() {
	b.begin()
	for _, bytes := range b.table {
		b.see(web, bytesFlow(bytes))
	}
}

// scrape returns the connections and bytes told.
func (b *book) scrape() (conns, bytes uint64) {
	b.read()
	b.settle(b.now)
	b.each(func(_ series, told tally, _ int) { conns, bytes = told[connections], told[bytesIn] })
	return conns, bytes
}

func (b *book) want(t *testing.T, what string, conns, bytes uint64) {
	t.Helper()
	if c, n := b.scrape(); c != conns || n != bytes {
		t.Errorf("%s: %d connections of %d bytes are told, want %d of %d", what, c, n, conns, bytes)
	}
}

func TestLedger(t *testing.T) {
	b := &book{now: time.Now()}
	b.table = []uint64{100, 200}
	b.want(t, "two live", 2, 300)
	b.table = []uint64{150, 200}
	b.want(t, "one grows", 2, 350)
	b.table = []uint64{200}
	b.count(web, bytesFlow(160))
	b.want(t, "one ends", 2, 360)
	b.table = nil
	b.want(t, "one is in neither", 2, 360)
	b.count(web, bytesFlow(250))
	b.want(t, "its end is told", 2, 410)
}

func TestLedgerDoesNotCountTwice(t *testing.T) {
	b := &book{now: time.Now(), table: []uint64{100}}
	b.scrape()
	b.begin()
	b.see(web, bytesFlow(100))
	b.count(web, bytesFlow(120)) // ends after it was read
	b.settle(b.now)
	b.each(func(_ series, told tally, _ int) {
		if told[connections] != 1 || told[bytesIn] != 100 {
			t.Errorf("%d connections of %d bytes are told, want 1 of 100", told[connections], told[bytesIn])
		}
	})
	b.table = nil
	b.want(t, "afterwards", 1, 120)
}

func TestLedgerGoesOnAfterLoss(t *testing.T) {
	b := &book{now: time.Now(), table: []uint64{1000, 500}}
	b.want(t, "two live", 2, 1500)
	b.table = []uint64{500}
	b.want(t, "one is lost", 2, 1500)
	b.now = b.now.Add(settling + time.Second)
	b.table = []uint64{510}
	b.want(t, "for long", 2, 1500)
	b.table = []uint64{530}
	b.want(t, "then what comes counts", 2, 1520)
}

func TestLedgerStartsAtZero(t *testing.T) {
	b := &book{now: time.Now(), table: []uint64{1000, 500}}
	b.read()
	b.start()
	b.want(t, "at the start", 0, 0)
	b.table = []uint64{1010, 500, 5}
	b.want(t, "one grows, one comes", 1, 15)
	b.table = []uint64{500, 5}
	b.count(web, bytesFlow(1020))
	b.want(t, "one ends", 1, 25)
}

func TestLedgerForgets(t *testing.T) {
	b := &book{now: time.Now(), table: []uint64{100}}
	b.scrape()
	b.table = nil
	b.count(web, bytesFlow(100))
	b.keep(nil, b.now)
	b.now = b.now.Add(afterlife)
	b.want(t, "an hour after it went", 1, 100)
	b.keep([]*servicePort{{series: web}}, b.now) // made anew
	b.now = b.now.Add(2 * afterlife)
	b.want(t, "made anew", 1, 100)
	b.keep(nil, b.now)
	b.now = b.now.Add(afterlife + time.Second)
	b.want(t, "long gone", 0, 0)
	if len(b.accounts) != 0 {
		t.Errorf("%d accounts are kept", len(b.accounts))
	}
}

func TestLedgerOpen(t *testing.T) {
	b := &book{}
	b.begin()
	for _, state := range []uint8{nl.TCP_CONNTRACK_ESTABLISHED, nl.TCP_CONNTRACK_TIME_WAIT} {
		f := bytesFlow(1)
		f.tcpState = state
		b.see(web, f)
	}
	b.settle(time.Now())
	b.each(func(_ series, told tally, open int) {
		if told[connections] != 2 || open != 1 {
			t.Errorf("%d connections, %d open: want 2, 1", told[connections], open)
		}
	})
}

func TestLedgerAllocatesNothing(t *testing.T) {
	var l ledger
	f := bytesFlow(100)
	if n := testing.AllocsPerRun(100, func() { l.count(web, f) }); n != 0 {
		t.Errorf("%v allocations a flow", n)
	}
}
