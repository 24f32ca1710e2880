package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/bench/l4/api"
	"sallyport/bench/lab/network"
)

// The flows that have to survive the death of their edge come from many clients, go to many Services, and have one of
// four addresses towards the endpoints.
const (
	failoverClients  = 24
	failoverServices = 50
	// firstClient is the last byte of the first client's address. All lie in clientsPrefix, 32 addresses from there.
	firstClient = 160
	// firstSNAT is the last byte, in the nodes' network, of the first of the four addresses.
	firstSNAT = 200
	// keepAlive is after how long without a packet the clients send one: a flow recovers when its client next sends.
	keepAlive = 2 * time.Second
	// deadFor is the time between the death of the edge and the moment that the other one has its addresses.
	deadFor = 500 * time.Millisecond
	// recoverWithin bounds how long a flow may take to go on: keepalives are sent every 2 s, and what an endpoint sends
	// again it sends at growing intervals.
	recoverWithin = 20 * time.Second
	// failoverTable is the routing table by which the client chooses the living edge.
	failoverTable = "2000"
)

// A failover is how the death of an edge went.
type failover struct {
	name            string
	ownAddress      bool // endpoints see the edge's own address, which dies with it
	flows, survived int
	byKind          map[byte]int  // of those that survived
	worst           time.Duration // from the death until the last survivor went on
}

// failovers measures the death of an edge for each dataplane of Sallyport, on a site of their own.
func failovers(ctx context.Context, contenders []contender, flows int, name, dir string, log *slog.Logger) (all []failover, err error) {
	s, err := newSite(name, 2, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.addClients(); err != nil {
		return nil, err
	}
	for i, c := range s.mortals(contenders) {
		f, err := s.failover(ctx, c, flows, filepath.Join(dir, fmt.Sprint("failover ", i)), log)
		if err != nil {
			return nil, fmt.Errorf("death of an edge of %s: %w", f.name, err)
		}
		log.Info("an edge died", "contender", f.name, "flows", f.flows, "survived", f.survived, "worst", f.worst)
		all = append(all, f)
	}
	return all, nil
}

// mortals are Sallyport's dataplanes with SNAT addresses, and one without: what that loses shows that the others are
// measured at all.
func (s *site) mortals(contenders []contender) []sallyport {
	first, last := s.snat()
	var with, without []sallyport
	for _, c := range contenders {
		if c, ok := c.(sallyport); ok {
			without = append(without[:0], c)
			c.snat = fmt.Sprintf("%v-%v", first, last)
			with = append(with, c)
		}
	}
	return append(with, without...)
}

// addClients gives the client its addresses and a table of routes that all of them use.
func (s *site) addClients() error {
	prefix := netip.PrefixFrom(withLastByte(s.client.Addr, firstClient), 27)
	errs := []error{run(s.client, "ip", "rule", "add", "from", prefix.String(), "lookup", failoverTable)}
	for i := range failoverClients {
		errs = append(errs, run(s.client, "ip", "address", "add", withLastByte(s.client.Addr, firstClient+i).String()+"/32", "dev", network.ClientsLink))
	}
	return errors.Join(errs...)
}

func withLastByte(a netip.Addr, b int) netip.Addr {
	four := a.As4()
	four[3] = byte(b)
	return netip.AddrFrom4(four)
}

// snat is the range of addresses that the edges have towards the endpoints, at any time one of them.
func (s *site) snat() (first, last netip.Addr) {
	return withLastByte(s.node.NodesAddr, firstSNAT), withLastByte(s.node.NodesAddr, firstSNAT+3)
}

// moveTo makes an edge the one that has the VIPs and the SNAT addresses, as announcing them would.
func (s *site) moveTo(e *edgeHost) error {
	first, _ := s.snat()
	return errors.Join(
		run(s.client, "ip", "route", "replace", api.VIPs.String(), "via", e.Addr.String(), "table", failoverTable),
		run(s.node, "ip", "route", "replace", netip.PrefixFrom(first, 30).String(), "via", e.NodesAddr.String()),
	)
}

// failover has flows go through one edge, lets it die, moves its addresses to another one and counts the flows that go on.
func (s *site) failover(ctx context.Context, c sallyport, flows int, dir string, log *slog.Logger) (f failover, err error) {
	f = failover{name: c.name(), flows: flows, byKind: map[byte]int{}}
	if f.ownAddress = c.snat == ""; f.ownAddress {
		f.name += ", the machine's own address"
	}
	state := api.NewState(failoverServices, 5, s.nodes()...)
	var pair [2]*runner
	for i, e := range s.edges {
		r, err := s.place(c, e, fmt.Sprint(dir, " ", i+1), log)
		if err != nil {
			return f, err
		}
		if err := r.serve(state); err != nil {
			return f, err
		}
		defer func() { err = errors.Join(err, mend(e), r.stop()) }()
		if err := s.moveTo(e); err != nil { // without, no answer comes back to this one
			return f, err
		}
		limit, cancel := context.WithTimeout(ctx, time.Minute)
		_, err = r.program(limit)
		cancel()
		if err != nil {
			return f, err
		}
		pair[i] = r
	}
	if err := s.moveTo(pair[0].edge); err != nil {
		return f, err
	}
	all, err := s.openTalks(flows)
	defer func() {
		for _, t := range all {
			t.conn.Close()
		}
	}()
	if err != nil {
		return f, err
	}
	died, err := s.die(ctx, pair, all)
	if err != nil {
		return f, err
	}
	f.count(ctx, all, died)
	return f, nil
}

// mend gives an edge its cables back.
func mend(e *edgeHost) error {
	return errors.Join(e.MendCable(network.ClientsLink), e.MendCable(network.NodesLink))
}

// die lets the flows talk, kills the first edge as a power cut does, and has the second take over. It returns when the first died.
func (s *site) die(ctx context.Context, pair [2]*runner, all []*talk) (time.Time, error) {
	for _, t := range all {
		go t.run() // ends with the connection
	}
	if err := pause(ctx, time.Second); err != nil {
		return time.Time{}, err
	}
	dead := pair[0]
	err := errors.Join(dead.edge.CutCable(network.ClientsLink, network.Silent), dead.edge.CutCable(network.NodesLink, network.Silent))
	died := time.Now()
	dead.process.kill()
	if err := errors.Join(err, pause(ctx, deadFor)); err != nil {
		return died, err
	}
	for _, t := range all {
		t.mark()
	}
	return died, s.moveTo(pair[1].edge)
}

// count waits for the flows to go on.
func (f *failover) count(ctx context.Context, all []*talk, died time.Time) {
	limit, cancel := context.WithDeadline(ctx, died.Add(recoverWithin))
	defer cancel()
	for _, t := range all {
		select {
		case <-t.wentOn:
			f.survived++
			f.byKind[t.kind]++
			f.worst = max(f.worst, t.at.Sub(died))
		case <-t.ended:
		case <-limit.Done():
		}
	}
}

// A talk is one flow and its client.
type talk struct {
	kind   byte
	conn   net.Conn
	marked atomic.Bool
	wentOn chan struct{} // closed when something has come after the mark
	ended  chan struct{} // closed when the connection failed
	once   sync.Once
	at     time.Time // when wentOn was closed
}

// openTalks establishes flows of all kinds, from all clients to all Services.
func (s *site) openTalks(n int) (all []*talk, err error) {
	kinds := []byte{askEcho, askThink, askDownload}
	err = s.client.Do(func() error {
		for i := range n {
			d := net.Dialer{
				Timeout:         patience,
				LocalAddr:       net.TCPAddrFromAddrPort(netip.AddrPortFrom(withLastByte(s.client.Addr, firstClient+i%failoverClients), 0)),
				KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: 30},
			}
			conn, err := d.Dial("tcp4", vip(i%failoverServices).String())
			if err != nil {
				return fmt.Errorf("open flow %d: %w", i, err)
			}
			all = append(all, &talk{kind: kinds[i%len(kinds)], conn: conn, wentOn: make(chan struct{}), ended: make(chan struct{})})
			if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
				return fmt.Errorf("read from flow %d: %w", i, err)
			}
		}
		return nil
	})
	return all, err
}

// mark says that the edge has been dead for so long that nothing is on its way any more.
func (t *talk) mark() { t.marked.Store(true) }

// run talks until the connection ends. It fills ended then.
func (t *talk) run() {
	defer close(t.ended)
	if t.kind == askDownload {
		t.download()
		return
	}
	for {
		b := []byte{t.kind}
		if _, err := t.conn.Write(b); err != nil {
			return
		}
		if _, err := io.ReadFull(t.conn, b); err != nil {
			return
		}
		t.received()
		if t.kind == askEcho {
			time.Sleep(chunkEvery)
		}
	}
}

// download reads chunks.
func (t *talk) download() {
	if _, err := t.conn.Write([]byte{askDownload}); err != nil {
		return
	}
	chunk := make([]byte, chunkBytes)
	for {
		if _, err := io.ReadFull(t.conn, chunk); err != nil {
			return
		}
		t.received()
	}
}

// received notes that an answer has come. After the mark it can only have come through the living edge.
func (t *talk) received() {
	if t.marked.Load() {
		t.once.Do(func() {
			t.at = time.Now()
			close(t.wentOn)
		})
	}
}
