package rules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/rules/conntrack"
	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// A Kernel makes the kernel's L4 dataplane match snapshots. Reconcile is not safe for concurrent use; Watch runs beside it.
//
// It needs CAP_NET_ADMIN, and CAP_NET_RAW for the sockets of iptables-legacy; iptables-legacy also writes
// /run/xtables.lock, and asks for user id 0.
type Kernel struct {
	o          Options
	log        *slog.Logger
	metrics    metrics
	net        *network
	stacks     []*stack // the families that this machine has
	noIPv6     string   // why IPv6 is not among them
	rules      dataplane
	isOwn      func(place) bool // the dataplane's rules are there
	clean      bool             // and nowhere else
	flows      *conntrack.Tracker
	sized      bool      // the table of connections is
	plainUntil time.Time // no extras before

	noted    []model.Problem // of the Reconcile that runs
	problems atomic.Pointer[[]model.Problem]

	said map[string]string // the last complaint about each thing, so that it is not logged again
}

// NewKernel finds the tools of the dataplane and says which. It fails without them or without the privilege to use them, and
// then says what to do. Without IPv6, IPv4 is served alone.
func NewKernel(o Options) (*Kernel, error) {
	k := &Kernel{o: o.withDefaults(), metrics: newMetrics(o.Metrics), said: map[string]string{}, stacks: []*stack{newStack(plan.IPv4)}}
	k.log = k.o.Log.With("part", "rules")
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	var err error
	if k.noIPv6, err = k.openDataplane(); err != nil {
		return nil, err
	}
	if k.noIPv6 != "" {
		k.log.Info("IPv6 is not served", "why", k.noIPv6)
	} else {
		k.stacks = append(k.stacks, newStack(plan.IPv6))
	}
	if k.net, err = openNetwork(); err != nil {
		return nil, err
	}
	if k.flows, err = conntrack.New(k.conntrackOptions()); err != nil {
		k.net.Close()
		return nil, fmt.Errorf("open connection tracking, which takes the kernel's module nf_conntrack_netlink: %w", err)
	}
	return k, nil
}

// Close lets go of what NewKernel opened, when Watch and Reconcile have returned. What is in the kernel stays.
func (k *Kernel) Close() {
	k.flows.Close()
	k.net.Close()
}

func (k *Kernel) conntrackOptions() conntrack.Options {
	return conntrack.Options{Mark: k.o.Owner(), MarkMask: plan.OwnerMask, Max: k.o.ConntrackMax, Log: k.log, Metrics: k.o.Metrics}
}

// stack is that of an address; nil if this machine has none.
func (k *Kernel) stack(a netip.Addr) *stack {
	for _, s := range k.stacks {
		if s.Has(a) {
			return s
		}
	}
	return nil
}

// checkPrivilege fails without CAP_NET_ADMIN: each tool would otherwise fail in words of its own.
func checkPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("no CAP_NET_ADMIN (%w): run as root, or give it by AmbientCapabilities= in the systemd unit", fs.ErrPermission)
	}
	return nil
}

// Reconcile brings forwarding, VIPs, routes and rules in line with the snapshot. It is idempotent, and cheap when
// nothing changed. After an error the kernel may hold parts of both states; the next call writes everything anew. One family that
// fails does not keep the other from being served.
//
// The order keeps every state in between harmless: addresses that go away are withdrawn first, new ones come last,
// when their rules stand. At no time does a VIP answer without its guard, or this machine forward without the rules that
// keep forwarding to ourselves.
func (k *Kernel) Reconcile(ctx context.Context, s *model.Snapshot) error {
	k.noted = nil
	defer k.publishProblems()
	here, err := k.look()
	if err != nil {
		return err
	}
	s = k.withoutTakeovers(s, here)
	served, err := k.bring(ctx, k.withoutExtras(s), here)
	if err != nil && len(served) < len(k.stacks) && k.giveUpExtras(ctx, s, err) {
		served, err = k.bring(ctx, k.withoutExtras(s), here)
	}
	if len(served) == 0 {
		return err
	}
	if !k.clean {
		k.leaveOthers(ctx)
		k.clean = true
	}
	return model.Partial(errors.Join(err, k.assign(ctx, here, answered(served), s), k.trackFlows(ctx, s, here)))
}

// look reads what there is on this machine: its addresses, and the routes of each stack. A list that changed while it was read may
// lack entries, so it is read again; where others change routes all the time, the error is left for the next Reconcile.
func (k *Kernel) look() (here addresses, err error) {
	const tries = 5
	for range tries {
		if here, err = k.lookOnce(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return here, err
}

func (k *Kernel) lookOnce() (here addresses, err error) {
	for _, st := range k.stacks {
		if err := st.readRoutes(k.net); err != nil {
			return here, err
		}
	}
	return k.net.readAddresses(k.o.Link)
}

// trackFlows makes room for connections, deletes those of UDP that lead to endpoints which are gone, and has the service ports
// counted. The rules stand: what is deleted comes again by them. A family whose rules failed this time goes on with those of before, and
// so do its flows.
func (k *Kernel) trackFlows(ctx context.Context, s *model.Snapshot, here addresses) error {
	if !k.sized {
		if _, err := conntrack.Size(k.conntrackOptions()); err != nil {
			return err
		}
		k.sized = true
	}
	nodePorts, err := k.nodePortAddresses(here)
	if err != nil {
		return err
	}
	var local []netip.Addr // where NodePorts are served
	for _, p := range here.others {
		if slices.ContainsFunc(nodePorts, func(n netip.Prefix) bool { return n.Contains(p.Addr()) }) {
			local = append(local, p.Addr())
		}
	}
	return k.flows.Reconcile(ctx, s, local)
}

// bring withdraws what goes away and brings about the rest, but for new addresses. It returns the plans that are now in force.
func (k *Kernel) bring(ctx context.Context, s *model.Snapshot, here addresses) (served []*plan.Plan, err error) {
	plans, err := k.plans(ctx, s, here)
	if err != nil {
		return nil, err
	}
	if err := k.withdraw(ctx, here, answered(plans)); err != nil {
		return nil, err
	}
	return k.program(ctx, s, plans)
}

// plans are those of the families that this machine has.
func (k *Kernel) plans(ctx context.Context, s *model.Snapshot, here addresses) (plans []*plan.Plan, err error) {
	o := k.o.Options
	o.Groups = k.groups(ctx, here)
	if o.NodePortAddresses, err = k.nodePortAddresses(here); err != nil {
		return nil, err
	}
	for _, st := range k.stacks {
		p := plan.New(s, st.Family, o)
		k.noted = append(k.noted, p.Problems...)
		plans = append(plans, p)
	}
	return plans, nil
}

// groups are those of the options, without addresses that this edge has for itself: the guard would lock the operator out.
func (k *Kernel) groups(ctx context.Context, here addresses) []plan.Group {
	isOwn := func(a netip.Addr) bool {
		return slices.ContainsFunc(here.others, func(p netip.Prefix) bool { return p.Addr() == a })
	}
	groups := slices.Clone(k.o.Groups)
	for i := range groups {
		g := &groups[i]
		refuse := func(a any, own bool) bool {
			if own && k.isNews(fmt.Sprint(g.Name, a), "own") {
				k.log.ErrorContext(ctx, "an address of a group is left out, as it is the edge's own: groups move from edge to edge", "group", g.Name, "address", a)
			}
			return own
		}
		g.NodesGateway = without(g.NodesGateway, func(a netip.Addr) bool { return refuse(a, isOwn(a)) })
		g.SNATAddresses = without(g.SNATAddresses, func(r plan.Range) bool {
			return refuse(r, slices.ContainsFunc(here.others, func(p netip.Prefix) bool {
				return r.First.Compare(p.Addr()) <= 0 && p.Addr().Compare(r.Last) <= 0
			}))
		})
	}
	return groups
}

// program brings routes, rules and forwarding about, family by family, and returns the plans that are now in force.
func (k *Kernel) program(ctx context.Context, s *model.Snapshot, plans []*plan.Plan) (served []*plan.Plan, err error) {
	start := time.Now()
	var errs []error
	wrote := false
	for i, st := range k.stacks {
		routes := k.reconcileRoutes(ctx, st, s) // one node's route that fails is no reason to stop serving the others
		changed, err := k.serve(ctx, st, plans[i])
		if err == nil {
			served = append(served, plans[i])
		}
		wrote = wrote || changed
		errs = append(errs, routes, err)
	}
	k.metrics.note(wrote, len(served) == len(plans), time.Since(start))
	return served, errors.Join(errs...)
}

// serve brings the rules and the forwarding of a family about.
func (k *Kernel) serve(ctx context.Context, st *stack, p *plan.Plan) (changed bool, err error) {
	if err := k.learnRouter(ctx, st); err != nil {
		return false, err
	}
	forward := st.needsForwarding(p)
	p.Router, p.Routed = st.router || !st.learnt && !forward, st.routed
	if changed, err = k.rules.Apply(ctx, p); err != nil {
		return changed, fmt.Errorf("apply rules: %w", err)
	}
	if forward {
		err = k.turnForwardingOn(ctx, st)
	}
	return changed, err
}

// Problems are the objects that the last Reconcile could not honour, ordered. It may be called at any time; the list must not
// be modified.
func (k *Kernel) Problems() []model.Problem {
	if p := k.problems.Load(); p != nil {
		return *p
	}
	return nil
}

// problem notes one, and returns true.
func (k *Kernel) problem(ref model.ObjectRef, field string, r model.Reason, format string, args ...any) bool {
	k.noted = append(k.noted, model.Problem{Object: ref, Field: field, Reason: r, Message: fmt.Sprintf(format, args...)})
	return true
}

func (k *Kernel) publishProblems() {
	slices.SortFunc(k.noted, model.Problem.Compare)
	list := slices.Compact(k.noted)
	k.problems.Store(&list)
}

// isNews says whether something is worth a line in the log: unless the last thing about it was the same.
func (k *Kernel) isNews(about, what string) bool {
	if k.said[about] == what {
		return false
	}
	k.said[about] = what
	return true
}
