// Package status writes back to Kubernetes what an edge makes of it: the addresses of Services and Ingresses to their
// status, and Problems as Events.
//
// Of all edges of a cluster one writes, the holder of a Lease; the others stand by. Nothing is written by difference to
// what was written before, always to what the API server shows, so that a successor goes on where its predecessor stopped.
// What another controller has written is left alone: see apply.go.
package status

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"sallyport/watcher/model"
)

// FieldManager is the name under which the API server's metadata.managedFields shows our fields.
const FieldManager = "sallyport"

// Options configure a Writer.
type Options struct {
	// Cluster is the name of the cluster whose API server Config is of, as in ObjectRef.Cluster. Objects of other clusters
	// are passed over.
	Cluster string
	// Config says how to reach the API server. It is copied.
	Config *rest.Config
	// Identity is the name of this edge. It begins the holder of the Lease and is the reportingInstance of Events.
	Identity string
	// LeaseNamespace is the namespace of the Lease, named LeaseName. It is never made here.
	LeaseNamespace string
	// IngressAddresses returns the addresses that an Ingress gets. None leaves Ingresses alone.
	IngressAddresses func() []netip.Addr
	// UID returns metadata.uid of an object, or "" if it is not known. There are no Events on objects without.
	UID func(model.ObjectRef) string
	// Changed is called when Reconcile has something to do without a new snapshot: this edge becomes the writer, or
	// writes are left over; and when Problems changes. It must not block.
	Changed func()
	Log     *slog.Logger
	// Metrics may be nil. Where there are several Writers, each needs a label of its own.
	Metrics prometheus.Registerer
}

// Bounds of what a Writer asks of the API server.
const (
	requestTimeout = 5 * time.Second // half of renewDeadline: one request that hangs does not cost the Lease
	writesBurst    = 100
	writesPerSec   = 20
	eventsBurst    = 50
	eventsPerSec   = 5
)

// A Writer writes to one cluster. Run elects it and sends Events; Reconcile, which may be called at the same time, writes
// addresses.
type Writer struct {
	o        Options
	client   kubernetes.Interface
	identity string // of this process, unlike that of the edge: its predecessor may hold the Lease yet
	log      *slog.Logger
	metrics  metrics
	refused  refusals
	problems problems

	writes, sends flowcontrol.RateLimiter // of status, of Events

	mu       sync.Mutex
	term     *term  // nil when we do not lead
	resigned bool   // Run is ending: we lead no more
	holder   string // of the Lease, as last seen

	writing sync.Mutex  // held by Reconcile
	again   *time.Timer // calls Changed for what attempts hold back
}

// New returns a Writer that does nothing before Run.
func New(o Options) (*Writer, error) {
	if o.Config == nil || o.Identity == "" || o.LeaseNamespace == "" {
		return nil, errors.New("status needs the configuration of an API server, an identity and the namespace of a Lease")
	}
	config := rest.CopyConfig(o.Config)
	config.QPS = -1 // what matters is limited here, and the Lease must not queue behind it
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the client that writes status: %w", err)
	}
	return newWriter(o, client), nil
}

func newWriter(o Options, client kubernetes.Interface) *Writer {
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.IngressAddresses == nil {
		o.IngressAddresses = func() []netip.Addr { return nil }
	}
	w := &Writer{
		o: o, client: client, log: o.Log, metrics: newMetrics(o.Metrics),
		identity: o.Identity + "_" + strings.ToLower(rand.Text()[:8]),
		refused:  refusals{changed: o.Changed},
		problems: problems{wake: make(chan struct{}, 1)},
		writes:   flowcontrol.NewTokenBucketRateLimiter(writesPerSec, writesBurst),
		sends:    flowcontrol.NewTokenBucketRateLimiter(eventsPerSec, eventsBurst),
		again:    time.AfterFunc(time.Hour, o.Changed),
	}
	w.again.Stop()
	return w
}

// Run takes part in the election, and as the leader sends Events, until ctx ends. An API server that is away is waited
// for. At the end the Lease is released, after the last write, so that the next edge need not wait for it to expire.
func (w *Writer) Run(ctx context.Context) error {
	electing, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	elected := make(chan error, 1)
	go func() { elected <- w.elect(electing) }()
	w.sendEvents(ctx)
	w.resign()
	release()
	return <-elected
}

// Leader returns the holder of the Lease as last seen: the name of an edge, "_" and a random suffix. It is empty while
// nobody is known to hold it.
func (w *Writer) Leader() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holder
}

// Leads says whether this edge is the writer.
func (w *Writer) Leads() bool { return w.leading() != nil }

// Problems returns what the API server does not let this edge write, in order.
func (w *Writer) Problems() []model.Problem { return w.refused.problems(w.o.Cluster) }
