package stream

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/watcher/model"
)

// A portKey is the identity of a service port over snapshots.
type portKey struct {
	service  model.ObjectRef
	name     string
	protocol model.Protocol
	number   uint16
}

// A portState is what is known of a service port that no snapshot says. All listeners of the port share it.
type portState struct {
	limiter               *limiter      // the Service's
	connections, sessions *atomic.Int64 // the Service's
	clients               affinities
	traffic               *traffic
	round                 uint64 // of states, when a snapshot last had it
}

// A serviceState is what is known of a Service that no snapshot says.
type serviceState struct {
	limiter     limiter
	connections atomic.Int64 // of TCP, as told to Proxy.connections
	sessions    atomic.Int64 // of UDP, as told to Proxy.udpSessions
	round       uint64
}

// states are the states of all Services and service ports of the latest snapshot, and of those before while connections
// are left.
type states struct {
	uptime           func() time.Duration
	limited, affined budget // clients remembered, over all Services

	mu       sync.Mutex
	round    uint64 // counts snapshots
	services map[model.ObjectRef]*serviceState
	ports    map[portKey]*portState
	traffic  map[series]*traffic // of them, and of those that went within the afterlife
}

func newStates(uptime func() time.Duration, maxClients int) *states {
	return &states{
		uptime:   uptime,
		limited:  budget{most: int64(maxClients)},
		affined:  budget{most: int64(maxClients)},
		services: make(map[model.ObjectRef]*serviceState),
		ports:    make(map[portKey]*portState),
		traffic:  make(map[series]*traffic),
	}
}

// begin opens a round: what port is not called for until the next one belongs to no Service any more.
func (s *states) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.round++
}

// port returns the state of a service port, and gives its Service the limits of this snapshot.
func (s *states) port(svc *model.Service, port *model.ServicePort) *portState {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner := s.service(svc)
	key := portKey{svc.Ref, port.Name, port.Protocol, port.Port}
	st := s.ports[key]
	if st == nil {
		st = &portState{limiter: &owner.limiter, connections: &owner.connections, sessions: &owner.sessions, traffic: s.trafficOf(key.series())}
		st.clients.uptime, st.clients.remembered = s.uptime, &s.affined
		s.ports[key] = st
	}
	st.round = s.round
	return st
}

// trafficOf returns where a new port counts. s.mu is held.
func (s *states) trafficOf(key series) *traffic {
	t := s.traffic[key]
	if t == nil {
		t = new(traffic)
		s.traffic[key] = t
	}
	t.ports++
	return t
}

// service returns the state of a Service. s.mu is held.
func (s *states) service(svc *model.Service) *serviceState {
	st := s.services[svc.Ref]
	if st == nil {
		st = new(serviceState)
		st.limiter.uptime, st.limiter.remembered = s.uptime, &s.limited
		s.services[svc.Ref] = st
	}
	if st.round != s.round {
		st.round = s.round
		st.limiter.set(svc.Limits)
	}
	return st
}

// sweep forgets idle clients, and the Services that are gone, with their ports, when they have no connections left. Those that
// still look for a destination are connections, too.
func (s *states) sweep(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.services {
		st.limiter.sweep(now)
	}
	for key, st := range s.ports {
		st.clients.sweep(now)
		if st.round != s.round && st.limiter.idle() {
			st.clients.clear()
			st.traffic.ports--
			st.traffic.gone = now
			delete(s.ports, key)
		}
	}
	maps.DeleteFunc(s.traffic, func(_ series, t *traffic) bool { return t.ports == 0 && now-t.gone > afterlife })
	for ref, st := range s.services {
		if st.round != s.round && st.limiter.idle() {
			delete(s.services, ref)
		}
	}
}
