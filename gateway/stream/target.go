package stream

import (
	"errors"

	"sallyport/gateway/balance"
	"sallyport/watcher/model"
)

// maxTries bounds the destinations tried for one client: where so many in a row are dead, the next one is a poor bet,
// and a client must not have thousands of dials made for it.
const maxTries = 16

var errNoDestination = errors.New("no destination could be reached")

// A target is where a listener sends its clients. It is never modified; a change replaces it.
type target struct {
	service   model.ObjectRef
	endpoints []*balance.Endpoint
	picker    balance.Picker
}

func (p *Proxy) newTarget(w want) *target {
	endpoints := make([]*balance.Endpoint, len(w.destinations))
	for i, d := range w.destinations {
		endpoints[i] = p.opt.Endpoints.Endpoint(d.Addr)
	}
	return &target{w.service, endpoints, balance.NewRoundRobin(endpoints)}
}

// reach calls dial with the endpoint whose turn it is, and with others until dial succeeds. left is the number of
// tries left, this one included.
func (t *target) reach(dial func(e *balance.Endpoint, left int) error) (*balance.Endpoint, error) {
	errs := []error{errNoDestination}
	var tried []*balance.Endpoint
	for left := min(len(t.endpoints), maxTries); left > 0; left-- {
		e := t.picker.Pick(tried)
		if e == nil {
			break
		}
		err := dial(e, left)
		if err == nil {
			return e, nil
		}
		tried, errs = append(tried, e), append(errs, err)
	}
	return nil, errors.Join(errs...)
}
