package conntrack

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var webSeries = series{namespace: "default", service: "web", port: "80", protocol: "TCP"}

// book is a ledger of one service port, which reads a table of flows of so many bytes each.
type book struct {
	ledger
	now   time.Time
	table []uint64
	web   servicePort
}

func newBook(table ...uint64) *book {
	return &book{now: time.Now(), table: table, web: servicePort{series: webSeries}}
}

func bytesFlow(bytes uint64) *flow {
	f := flowOf(unix.IPPROTO_TCP, "198.51.100.10:80", "10.1.0.2:80")
	f.in = counter{packets: 1, bytes: bytes}
	return &f
}

func (b *book) read() {
	b.begin()
	for _, bytes := range b.table {
		b.see(&b.web, bytesFlow(bytes))
	}
}

// scrape returns the connections and bytes told.
func (b *book) scrape() (conns, bytes uint64) {
	b.read()
	b.settle(b.now)
	return b.told()
}

func (b *book) told() (conns, bytes uint64) {
	for _, r := range b.readings() {
		conns, bytes = r.tally[connections], r.tally[bytesIn]
	}
	return conns, bytes
}

func (b *book) want(t *testing.T, what string, conns, bytes uint64) {
	t.Helper()
	if c, n := b.scrape(); c != conns || n != bytes {
		t.Errorf("%s: %d connections of %d bytes are told, want %d of %d", what, c, n, conns, bytes)
	}
}

func TestLedger(t *testing.T) {
	b := newBook(100, 200)
	b.want(t, "two live", 2, 300)
	b.table = []uint64{150, 200}
	b.want(t, "one grows", 2, 350)
	b.table = []uint64{200}
	b.count(&b.web, bytesFlow(160))
	b.want(t, "one ends", 2, 360)
	b.table = nil
	b.want(t, "one is in neither", 2, 360)
	b.count(&b.web, bytesFlow(250))
	b.want(t, "its end is told", 2, 410)
}

func TestLedgerDoesNotCountTwice(t *testing.T) {
	b := newBook(100)
	b.scrape()
	b.begin()
	b.see(&b.web, bytesFlow(100))
	b.count(&b.web, bytesFlow(120)) // ends after it was read
	b.settle(b.now)
	if conns, bytes := b.told(); conns != 1 || bytes != 100 {
		t.Errorf("%d connections of %d bytes are told, want 1 of 100", conns, bytes)
	}
	b.table = nil
	b.want(t, "afterwards", 1, 120)
}

func TestLedgerGoesOnAfterLoss(t *testing.T) {
	b := newBook(1000, 500)
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
	b := newBook(1000, 500)
	b.read()
	b.start()
	b.want(t, "at the start", 0, 0)
	b.table = []uint64{1010, 500, 5}
	b.want(t, "one grows, one comes", 1, 15)
	b.table = []uint64{500, 5}
	b.count(&b.web, bytesFlow(1020))
	b.want(t, "one ends", 1, 25)
}

func TestLedgerForgets(t *testing.T) {
	b := newBook(100)
	b.scrape()
	b.table = nil
	b.count(&b.web, bytesFlow(100))
	b.keep(nil, b.now)
	b.now = b.now.Add(afterlife)
	b.want(t, "an hour after it went", 1, 100)
	b.keep([]*servicePort{{series: webSeries}}, b.now) // made anew
	b.now = b.now.Add(2 * afterlife)
	b.want(t, "made anew", 1, 100)
	b.keep(nil, b.now)
	b.now = b.now.Add(afterlife + time.Second)
	b.want(t, "long gone", 0, 0)
	if len(b.accounts) != 0 {
		t.Errorf("%d accounts are kept", len(b.accounts))
	}
}

// Flows may outlive their Service, and be there when it is made again: they were told of before.
func TestLedgerDoesNotTellTheFlowsOfAServiceMadeAnewAgain(t *testing.T) {
	b := newBook(1000, 500)
	b.want(t, "two live", 2, 1500)
	b.keep(nil, b.now)
	flows := b.table
	b.table = nil // they lead to no service port
	for range 3 {
		b.want(t, "while it is gone", 2, 1500)
		b.now = b.now.Add(settling + time.Second)
	}
	if r := b.readings(); r[0].open != 0 {
		t.Errorf("%d connections of what is gone are open", r[0].open)
	}
	b.keep([]*servicePort{{series: webSeries}}, b.now)
	b.table = flows
	b.want(t, "made anew", 2, 1500)
	b.table = []uint64{1100, 500}
	b.want(t, "one grows", 2, 1600)
}

// What ended just before the first reading began under another process, or was too short to matter.
func TestLedgerStartsAtZeroWhateverEndsMeanwhile(t *testing.T) {
	b := newBook(1000)
	b.count(&b.web, bytesFlow(7000))
	b.read()
	b.start()
	b.want(t, "at the start", 0, 0)
}

func TestLedgerOpen(t *testing.T) {
	b := newBook()
	b.begin()
	for _, state := range []uint8{nl.TCP_CONNTRACK_ESTABLISHED, nl.TCP_CONNTRACK_TIME_WAIT} {
		f := bytesFlow(1)
		f.tcpState = state
		b.see(&b.web, f)
	}
	b.settle(time.Now())
	if got := b.readings(); len(got) != 1 || got[0].tally[connections] != 2 || got[0].open != 1 {
		t.Errorf("told is %v, want 2 connections, 1 of them open", got)
	}
}

func TestLedgerAllocatesNothing(t *testing.T) {
	b, f := newBook(), bytesFlow(100)
	if n := testing.AllocsPerRun(100, func() { b.count(&b.web, f) }); n != 0 {
		t.Errorf("%v allocations a flow", n)
	}
}
