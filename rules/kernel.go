package rules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
	"sallyport/watcher/model"
)

// A Kernel makes the kernel's L4 dataplane match snapshots. Reconcile is not safe for concurrent use; Watch runs beside it.
//
// It needs CAP_NET_ADMIN, and CAP_NET_RAW for the sockets of iptables-legacy; iptables-legacy also writes
// /run/xtables.lock, and asks for user id 0.
type Kernel struct {
	o       Options
	log     *slog.Logger
	metrics metrics
	flavour flavour
	ipt     *goiptables.IPTables
	nft     nftSocket
	drift   drift

	mu sync.Mutex // held while rules are written, and by Watch while it looks at them
	// applied is what the tables hold; nil when that is not known, and the next apply writes everything.
	applied map[string]iptables.Table
	sizes   map[string]tableSize // of iptables-legacy's tables, when they were last known to hold what was applied
	// legacyInterval is the time between two looks at them.
	legacyInterval time.Duration

	noted    []model.Problem // of the Reconcile that runs
	problems atomic.Pointer[[]model.Problem]

	learnt bool              // o.Router is known
	said   map[string]string // the last complaint about each route, so that it is not logged again
}

// NewKernel finds iptables and says which. It fails without the commands or without the privilege to use them, and
// then says what to do.
func NewKernel(o Options) (*Kernel, error) {
	k := &Kernel{o: o.withDefaults(), metrics: newMetrics(o.Metrics), said: map[string]string{},
		sizes: map[string]tableSize{}, legacyInterval: legacyInterval}
	k.log = k.o.Log.With("part", "rules")
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	var err error
	if k.flavour, err = findFlavour(k.o.Backend); err != nil {
		return nil, err
	}
	if k.flavour.backend == BackendNFT {
		k.flavour.mute = k.nft.mute
	}
	if err := k.flavour.checkUser(); err != nil {
		return nil, err
	}
	if k.ipt, err = goiptables.New(goiptables.Path(k.flavour.command), goiptables.Timeout(5)); err != nil {
		return nil, fmt.Errorf("run %s: %w", k.flavour.command, err)
	}
	if !k.ipt.HasRandomFully() {
		return nil, fmt.Errorf("%s is older than 1.6.2 and cannot MASQUERADE --random-fully: upgrade iptables", k.flavour.command)
	}
	major, minor, patch := k.ipt.GetIptablesVersion()
	k.log.Info("iptables found", "command", k.flavour.command, "backend", k.flavour.backend,
		"version", fmt.Sprintf("%d.%d.%d", major, minor, patch))
	return k, nil
}

// checkPrivilege fails without CAP_NET_ADMIN: each tool would otherwise fail in words of its own.
func checkPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("no CAP_NET_ADMIN: run as root, or give it by AmbientCapabilities= in the systemd unit")
	}
	return nil
}

// Reconcile brings forwarding, VIPs, routes and rules in line with the snapshot. It is idempotent, and cheap when
// nothing changed. After an error the kernel may hold parts of both states; the next call writes everything anew.
//
// The order keeps every state in between harmless: addresses that go away are withdrawn first, new ones come last,
// when their rules stand. At no time does a VIP answer without its guard, or this machine forward without the rules that
// keep forwarding to ourselves.
func (k *Kernel) Reconcile(ctx context.Context, s *model.Snapshot) error {
	k.noted = nil
	defer k.publishProblems()
	if err := k.learnRouter(ctx); err != nil {
		return err
	}
	here, err := readAddresses(k.o.Link)
	if err != nil {
		return err
	}
	if s, err = k.withoutTakeovers(s, here); err != nil {
		return err
	}
	vips := vips(s)
	if err := k.withdraw(ctx, here, vips); err != nil {
		return err
	}
	routes := k.reconcileRoutes(ctx, s) // one node's route that fails is no reason to stop serving the others
	if err := k.apply(ctx, iptables.Render(plan.New(s, plan.IPv4, k.o.plan()))); err != nil {
		return errors.Join(routes, err)
	}
	if err := k.turnForwardingOn(ctx); err != nil {
		return errors.Join(routes, err)
	}
	return model.Partial(errors.Join(routes, k.assign(ctx, here, vips, s)))
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

// vips lists the IPv4 addresses to stand on the link, ordered.
func vips(s *model.Snapshot) []netip.Addr {
	var list []netip.Addr
	for i := range s.Services {
		for _, a := range s.Services[i].VIPs {
			if a.Is4() {
				list = append(list, a)
			}
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// apply writes what differs from the last time, or everything if that is not known or no longer true.
func (k *Kernel) apply(ctx context.Context, want iptables.Ruleset) error {
	start := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	changed, err := k.write(ctx, want)
	if err != nil {
		k.applied = nil
		k.metrics.applies.WithLabelValues("error").Inc()
		return fmt.Errorf("apply rules: %w", err)
	}
	if !changed {
		return nil
	}
	k.applied = map[string]iptables.Table{}
	for _, t := range want.Tables {
		k.applied[t.Name] = t
		k.metrics.rules.WithLabelValues(t.Name).Set(float64(t.Rules()))
	}
	k.metrics.applies.WithLabelValues("success").Inc()
	k.metrics.seconds.Observe(time.Since(start).Seconds())
	return nil
}

func (k *Kernel) write(ctx context.Context, want iptables.Ruleset) (changed bool, err error) {
	if err := k.checkLegacy(ctx); err != nil {
		return false, err
	}
	found := k.noteDrift(ctx)
	switch {
	case k.applied == nil:
		return true, k.applyAll(ctx, want)
	case len(found) > 0:
		return true, k.makeGood(ctx, want, found)
	default:
		return k.applyChanges(ctx, want)
	}
}

// applyChanges writes the chains that differ from those applied last.
func (k *Kernel) applyChanges(ctx context.Context, want iptables.Ruleset) (changed bool, err error) {
	for _, t := range want.Tables {
		old := k.applied[t.Name]
		write, gone := t.Since(old)
		if len(write)+len(gone) == 0 {
			continue
		}
		changed = true
		if err := k.flavour.restore(ctx, t.Change(write, gone, nil)); err != nil {
			return changed, fmt.Errorf("table %s: %w", t.Name, err)
		}
		k.resize(t, t.Entries()-old.Entries())
	}
	return changed, nil
}

// applyAll writes every chain, whatever is there, and removes what an earlier run left, also in the other backend.
func (k *Kernel) applyAll(ctx context.Context, want iptables.Ruleset) error {
	clear(k.sizes)
	found, err := k.flavour.find(ctx)
	if err != nil {
		return err
	}
	if err := ensureHooks(k.ipt, found); err != nil {
		return err
	}
	for _, t := range want.Tables {
		old := found[t.Name]
		delete(found, t.Name)
		stale := slices.DeleteFunc(old.jumps, iptables.IsHook)
		if err := k.flavour.restore(ctx, t.Change(t.Chains, t.Without(old.chains), deletions(stale))); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
	}
	for table, old := range found {
		if err := k.flavour.restore(ctx, old.remove(table)); err != nil {
			return fmt.Errorf("remove old rules from table %s: %w", table, err)
		}
	}
	return k.leaveOther(ctx)
}

// leaveOther removes our rules from the other backend, where a run with another setting may have left them. One that is
// installed, but that the kernel does not have, cannot be read and holds none.
func (k *Kernel) leaveOther(ctx context.Context) error {
	other := k.flavour.backend.other()
	f, err := findFlavour(other)
	if err != nil {
		return nil
	}
	found, err := f.find(ctx)
	if err != nil {
		if k.isNews(f.command, err.Error()) {
			level := slog.LevelWarn
			if errors.Is(err, fs.ErrPermission) { // as it is by intent for who is not root
				level = slog.LevelInfo
			}
			k.log.Log(ctx, level, "the other backend cannot be read: rules that an earlier run left there would stay", "backend", other, "err", err)
		}
		return nil
	}
	removed, err := f.remove(ctx, found)
	if len(removed) > 0 {
		k.log.InfoContext(ctx, "rules of the other backend removed", "backend", other, "removed", removed)
	}
	return err
}

// isNews says whether something is worth a line in the log: unless the last thing about it was the same.
func (k *Kernel) isNews(about, what string) bool {
	if k.said[about] == what {
		return false
	}
	k.said[about] = what
	return true
}
