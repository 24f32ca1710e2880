package watcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// How often and how long an API server is asked that does not answer.
const (
	probeFirst   = time.Second
	probeAtMost  = 5 * time.Second
	probeTimeout = 5 * time.Second
)

// probing marks the requests of a probe, which the gate lets through.
type probing struct{}

// keepGate opens the gate when the API server answers, each time that it was shut, until ctx ends.
func (c *connection) keepGate(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.gate.shut:
		}
		for delay := probeFirst; !c.probe(ctx); delay = min(2*delay, probeAtMost) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay):
			}
		}
		c.gate.pass()
		c.reached()
	}
}

// probe asks the API server for its namespace kube-system, and says whether requests may pass.
func (c *connection) probe(ctx context.Context) bool {
	within, cancel := context.WithTimeout(context.WithValue(ctx, probing{}, true), probeTimeout)
	defer cancel()
	list, err := c.client.CoreV1().Namespaces().List(within, metav1.ListOptions{FieldSelector: "metadata.name=" + metav1.NamespaceSystem})
	if isDenied(err) {
		return true // an answer, though it does not say of which cluster
	}
	if err == nil {
		var uid string
		for _, n := range list.Items {
			if n.Name == metav1.NamespaceSystem {
				uid = string(n.UID)
			}
		}
		err = c.identity.check(uid)
	}
	if err != nil && ctx.Err() == nil {
		c.unreached(err)
	}
	return err == nil
}

// An identity is the cluster that API servers must be of, by the UID of its namespace kube-system.
type identity struct {
	mu  sync.Mutex
	uid string // empty until it is known
}

// errOtherCluster is the error of an API server of another cluster.
var errOtherCluster = errors.New("another cluster")

// check compares the UID that an API server gives, or takes it if none is known. Every cluster has a namespace
// kube-system a few seconds after its first start.
func (i *identity) check(uid string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.uid == "":
		i.uid = uid
		return nil
	case uid == "":
		return errors.New("namespace kube-system is missing")
	case i.uid != uid:
		return fmt.Errorf("%w: its namespace kube-system has UID %s, ours has %s", errOtherCluster, uid, i.uid)
	}
	return nil
}

// expect sets the UID, unless it is known.
func (i *identity) expect(uid string) { _ = i.check(uid) }

// matches says whether a UID that was read, or none, is of the cluster.
func (i *identity) matches(uid string) bool { return uid == "" || i.check(uid) == nil }
