package balance

// A Weighted is an endpoint and its weight, at least 1, relative to the other endpoints of one choice.
type Weighted struct {
	Endpoint *Endpoint
	Weight   int
}

// NewTurns returns a picker that takes turns over the endpoints by weight: a RoundRobin if all weigh the same, and
// otherwise a Split.
func NewTurns(endpoints []Weighted) Picker {
	if even(endpoints) {
		all := make([]*Endpoint, len(endpoints))
		for i, e := range endpoints {
			all[i] = e.Endpoint
		}
		return NewRoundRobin(all)
	}
	shares := make([]Share, len(endpoints))
	for i, e := range endpoints {
		shares[i] = Share{NewRoundRobin([]*Endpoint{e.Endpoint}), e.Weight}
	}
	return NewSplit(shares)
}

// even says whether all endpoints weigh the same.
func even(endpoints []Weighted) bool {
	for _, e := range endpoints {
		if e.Weight != endpoints[0].Weight {
			return false
		}
	}
	return true
}
