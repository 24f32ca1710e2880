package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// requestWithin bounds how long a request may take to arrive, and the answer to leave.
const requestWithin = 10 * time.Second

// A request is what another process may ask of the one that has the lab up: one JSON object on the claim's socket.
type request struct {
	Action string `json:"action"` // actionStop or actionStart
	Target string `json:"target"` // one of Cluster.Programs, or a node
}

const (
	actionStop  = "stop"
	actionStart = "start"
)

// An answer says how the request went; Error is empty if well.
type answer struct {
	Error string `json:"error,omitempty"`
}

// requests runs what others ask for.
type requests struct {
	ctx  context.Context // ends with close
	stop context.CancelFunc

	mu     sync.RWMutex // held for reading while a request runs
	handle func(context.Context, request) error
}

func newRequests() *requests {
	r := &requests{handle: func(context.Context, request) error { return errors.New("the lab is still starting") }}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// serve makes handle run the requests from now on.
func (r *requests) serve(handle func(context.Context, request) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handle = handle
}

// close ends the requests that are being run, and refuses all others.
func (r *requests) close() {
	r.stop()
	r.serve(func(context.Context, request) error { return errors.New("the lab is being stopped") })
}

// answer runs the request that comes by conn. Who only looks for the owner sends none.
func (r *requests) answer(conn *net.UnixConn) {
	defer conn.Close()
	var asked request
	if conn.SetReadDeadline(time.Now().Add(requestWithin)) != nil || json.NewDecoder(conn).Decode(&asked) != nil {
		return
	}
	reply := answer{}
	if err := r.run(conn, asked); err != nil {
		reply.Error = err.Error()
	}
	if conn.SetWriteDeadline(time.Now().Add(requestWithin)) == nil {
		_ = json.NewEncoder(conn).Encode(reply) // who has gone does not want it
	}
}

func (r *requests) run(conn *net.UnixConn, asked request) error {
	cred, err := peer(conn)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() { // the socket itself is open to all
		return fmt.Errorf("user %d may not change the lab of user %d", cred.Uid, os.Geteuid())
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.handle(r.ctx, asked)
}

// Stop asks the process that has the lab up for Cluster.StopNode, if target is a node, or else Cluster.StopProgram.
func (s *State) Stop(target string) error { return s.ask(request{actionStop, target}) }

// Start is Stop's counterpart: Cluster.StartNode or Cluster.StartProgram.
func (s *State) Start(target string) error { return s.ask(request{actionStart, target}) }

func (s *State) ask(r request) error {
	conn, err := net.DialUnix("unix", nil, claimAddress(s.Name))
	if err != nil {
		return fmt.Errorf("ask lab %s to %s %s (is it up?): %w", s.Name, r.Action, r.Target, err)
	}
	defer conn.Close()
	var reply answer
	if err := errors.Join(json.NewEncoder(conn).Encode(r), json.NewDecoder(conn).Decode(&reply)); err != nil {
		return fmt.Errorf("ask lab %s to %s %s: %w", s.Name, r.Action, r.Target, err)
	}
	if reply.Error != "" {
		return fmt.Errorf("lab %s: %s", s.Name, reply.Error)
	}
	return nil
}

// serveRequest does what another process asks for.
func (c *Cluster) serveRequest(ctx context.Context, r request) error {
	_, err := c.node(r.Target)
	isNode := err == nil
	switch {
	case r.Action == actionStop && isNode:
		return c.StopNode(r.Target)
	case r.Action == actionStop:
		return c.StopProgram(r.Target)
	case r.Action == actionStart && isNode:
		return c.StartNode(ctx, r.Target)
	case r.Action == actionStart:
		return c.StartProgram(r.Target)
	}
	return fmt.Errorf("unknown action %q", r.Action)
}
