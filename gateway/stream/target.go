package stream

import (
	"errors"
	"net/netip"
	"slices"

	"sallyport/gateway/balance"
	"sallyport/watcher/model"
)

// maxTries bounds the destinations tried for one client: where so many in a row are dead, the next one is a poor bet,
// and a client must not have thousands of dials made for it.
const maxTries = 16

var errNoDestination = errors.New("no destination could be reached")

// A target is where a listener sends its clients, and what it asks of them. It is never modified; a change replaces it.
type target struct {
	service       model.ObjectRef
	state         *portState
	ranges        *model.SourceRanges // nil lets everyone in
	affinity      *model.Affinity     // nil takes turns
	proxyProtocol uint8               // version, or 0 for none
	v4, v6        *choice             // for clients of the family
}

// A choice is the destinations for clients of one family: those of their own, or else, since a proxy need not care, those of
// the other one.
type choice struct {
	endpoints []*balance.Endpoint
	turns     balance.Picker      // without affinity
	byClient  *balance.Rendezvous // with affinity
}

func (p *Proxy) newTarget(w want) *target {
	t := &target{service: w.service, state: w.state, ranges: w.ranges, affinity: w.affinity, proxyProtocol: w.proxyProtocol}
	var v4, v6 []balance.Weighted
	for _, d := range w.destinations {
		e := balance.Weighted{Endpoint: p.opt.Endpoints.Endpoint(d.Addr), Weight: max(int(d.Weight), 1)}
		if d.Addr.Addr().Is4() {
			v4 = append(v4, e)
		} else {
			v6 = append(v6, e)
		}
	}
	switch {
	case v4 == nil:
		t.v6 = p.newChoice(v6, t.affinity)
		t.v4 = t.v6
	case v6 == nil:
		t.v4 = p.newChoice(v4, t.affinity)
		t.v6 = t.v4
	default:
		t.v4, t.v6 = p.newChoice(v4, t.affinity), p.newChoice(v6, t.affinity)
	}
	return t
}

func (p *Proxy) newChoice(all []balance.Weighted, a *model.Affinity) *choice {
	c := &choice{}
	if a == nil {
		c.turns = balance.NewTurns(all)
	} else {
		c.byClient = balance.NewRendezvous(uint64(p.opt.HashSeed), all)
	}
	for _, e := range all {
		c.endpoints = append(c.endpoints, e.Endpoint)
	}
	return c
}

// all is the set of destinations, for clients of any family.
func (t *target) all() map[*balance.Endpoint]bool {
	set := make(map[*balance.Endpoint]bool, len(t.v4.endpoints))
	for _, e := range slices.Concat(t.v4.endpoints, t.v6.endpoints) {
		set[e] = true
	}
	return set
}

// reach calls dial with the endpoint chosen for the client, and with others until dial succeeds. left is the number of
// tries left, this one included.
func (t *target) reach(client netip.Addr, dial func(e *balance.Endpoint, left int) error) (*balance.Endpoint, error) {
	c := t.v6
	if client.Is4() {
		c = t.v4
	}
	errs := []error{errNoDestination}
	var tried []*balance.Endpoint
	for left := min(len(c.endpoints), maxTries); left > 0; left-- {
		e := t.pick(c, client, tried)
		if e == nil {
			break
		}
		err := dial(e, left)
		if err == nil {
			t.settle(client, e)
			return e, nil
		}
		tried, errs = append(tried, e), append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// pick chooses among the endpoints that were not tried.
func (t *target) pick(c *choice, client netip.Addr, tried []*balance.Endpoint) *balance.Endpoint {
	if t.affinity == nil {
		return c.turns.Pick(tried)
	}
	if t.affinity.Exact && len(tried) == 0 {
		if e := t.state.clients.endpoint(client); e != nil && slices.Contains(c.endpoints, e) {
			return e
		}
	}
	return c.byClient.Pick(client, tried)
}

// settle remembers, if it is to be, where a client was sent to.
func (t *target) settle(client netip.Addr, e *balance.Endpoint) {
	if t.affinity != nil && t.affinity.Exact {
		t.state.clients.remember(client, e, t.affinity.Timeout)
	}
}
