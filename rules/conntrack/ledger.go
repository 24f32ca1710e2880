package conntrack

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

// A tally is what a service port's flows add up to.
type tally [5]uint64

// The fields of a tally.
const (
	connections = iota
	packetsIn   // from clients
	packetsOut  // to clients
	bytesIn
	bytesOut
)

func (t *tally) add(f *flow) {
	t[connections]++
	t[packetsIn] += f.in.packets
	t[packetsOut] += f.out.packets
	t[bytesIn] += f.in.bytes
	t[bytesOut] += f.out.bytes
}

// settling is for how long a count may be behind what was told of it before, until that is held to be lost. A flow that ends
// while the table is read may be in neither of the two, but its end is told of within a moment.
const settling = 5 * time.Second

// afterlife is for how long the counts of a service port are told after it is gone: long enough for every scrape
// interval, and for a Service that is made anew to go on where it was.
const afterlife = time.Hour

// A ledger holds the counts of service ports: the sum of flows that have ended, which the kernel tells of, and of those that
// live, which are read when asked for.
type ledger struct {
	mu       sync.Mutex
	accounts map[series]*account
}

// An account is the counts of one service port. Sums are taken modulo 2^64, so that base can be negative.
type account struct {
	ended  tally // of flows that have ended
	before tally // ended, when the reading of the table began
	live   tally // of flows that were in the table
	open   int   // how many of those are open
	base   tally // to be added: see settle and start

	told     tally // what was told last: it never gets less
	toldOpen int
	behind   time.Time // since when there is less; zero if there is not
	gone     time.Time // when the service port went; zero if it has not

	instruments *instruments // of the Tracker while it collects; nil before it has
}

// count adds a flow that has ended.
func (l *ledger) count(p *servicePort, f *flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.account(p).ended.add(f)
}

// account finds the account of a service port, or opens one.
func (l *ledger) account(p *servicePort) *account {
	if p.account == nil {
		p.account = l.accounts[p.series]
	}
	if p.account == nil {
		if l.accounts == nil {
			l.accounts = map[series]*account{}
		}
		p.account = new(account)
		l.accounts[p.series] = p.account
	}
	return p.account
}

// begin is called before the table is read. What ends during that is not counted twice.
func (l *ledger) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.accounts {
		a.before, a.live, a.open = a.ended, tally{}, 0
	}
}

// see adds a flow of the table.
func (l *ledger) see(p *servicePort, f *flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(p)
	a.live.add(f)
	if f.isOpen() {
		a.open++
	}
}

// start is called after the table is read for the first time: what flows of before had by then, or when they ended before, is
// not counted. A process
// that goes on where another one was does not tell the same again.
func (l *ledger) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.accounts {
		for i := range a.base {
			a.base[i] -= a.before[i] + a.live[i]
		}
	}
}

// settle is called after the table is read: it brings what is told up to date, and returns what is not told of any more.
func (l *ledger) settle(now time.Time) (forgotten []series) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, a := range l.accounts {
		if !a.gone.IsZero() && now.Sub(a.gone) > afterlife {
			delete(l.accounts, s)
			forgotten = append(forgotten, s)
			continue
		}
		a.settle(now)
	}
	return forgotten
}

// settle tells what there is, but never less than before. If there is less for longer, the ends of flows were lost (the
// socket was full, or they belong to another service port by now), and counting goes on from what was told. But the flows of a
// service port that is gone may live on, and be there again when it is.
func (a *account) settle(now time.Time) {
	a.toldOpen = a.open
	var missing tally
	for i := range a.told {
		sum := a.base[i] + a.before[i] + a.live[i]
		if less := int64(a.told[i] - sum); less > 0 {
			missing[i] = uint64(less)
		} else {
			a.told[i] = sum
		}
	}
	switch {
	case missing == tally{} || !a.gone.IsZero():
		a.behind = time.Time{}
	case a.behind.IsZero():
		a.behind = now
	case now.Sub(a.behind) > settling:
		for i := range a.base {
			a.base[i] += missing[i]
		}
		a.behind = time.Time{}
	}
}

// keep notes which service ports are gone.
func (l *ledger) keep(ports []*servicePort, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	here := make(map[*account]bool, len(l.accounts))
	for _, p := range ports {
		if a := l.accounts[p.series]; a != nil {
			here[a], a.gone = true, time.Time{}
		}
	}
	for _, a := range l.accounts {
		if !here[a] && a.gone.IsZero() {
			a.gone = now
		}
	}
}

// A reading is what is told of a service port.
type reading struct {
	series
	tally
	open        int
	instruments **instruments // the account's
}

// readings are of each service port that has had traffic, in the order in which a Gatherer puts them: with 10,000 of them, to
// sort what comes without order takes longer than to read the table.
func (l *ledger) readings() []reading {
	l.mu.Lock()
	all := make([]reading, 0, len(l.accounts))
	for s, a := range l.accounts {
		all = append(all, reading{s, a.told, a.toldOpen, &a.instruments})
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b reading) int {
		return cmp.Or(strings.Compare(a.cluster, b.cluster), strings.Compare(a.namespace, b.namespace),
			strings.Compare(a.port, b.port), strings.Compare(a.protocol, b.protocol), strings.Compare(a.service, b.service))
	})
	return all
}
