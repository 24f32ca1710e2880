package rules

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"sallyport/rules/iptables"
	"sallyport/rules/nftables"
	"sallyport/rules/plan"
)

// xtables is the dataplane of iptables and ip6tables, of one backend.
type xtables struct {
	log     *slog.Logger
	metrics metrics
	changes nftables.Changes // of iptables-nft
	drift   drift

	mu      sync.Mutex // held while rules are written, and by watch while it looks at them
	writers []*writer  // one for each family

	// legacyInterval is the time between two looks at iptables-legacy's tables.
	legacyInterval time.Duration
}

// newXtables finds iptables. IPv6 has to be added.
func newXtables(o Options, log *slog.Logger, m metrics) (*xtables, error) {
	f, err := findFlavour(o.Backend, plan.IPv4)
	if err != nil {
		return nil, err
	}
	if err := f.checkUser(); err != nil {
		return nil, err
	}
	x := &xtables{log: log, metrics: m, legacyInterval: legacyInterval}
	return x, x.addFlavour(f)
}

// backend is that of both families.
func (x *xtables) backend() Backend { return x.writers[0].flavour.backend }

// addIPv6 finds ip6tables.
func (x *xtables) addIPv6() error {
	f, err := findFlavour(x.backend(), plan.IPv6)
	if err != nil {
		return err
	}
	return x.addFlavour(f)
}

func (x *xtables) addFlavour(f flavour) error {
	if f.backend == BackendNFT {
		f.mute = x.changes.Mute
	}
	w := &writer{flavour: f, xtables: x, sizes: map[string]tableSize{}}
	proto := map[plan.Family]goiptables.Protocol{plan.IPv4: goiptables.ProtocolIPv4, plan.IPv6: goiptables.ProtocolIPv6}[f.family]
	var err error
	if w.ipt, err = goiptables.New(goiptables.Path(f.command), goiptables.IPFamily(proto), goiptables.Timeout(5)); err != nil {
		return fmt.Errorf("run %s: %w", f.command, err)
	}
	if !w.ipt.HasRandomFully() {
		return fmt.Errorf("%s is older than 1.6.2 and cannot MASQUERADE --random-fully: upgrade iptables", f.command)
	}
	major, minor, patch := w.ipt.GetIptablesVersion()
	x.log.Info("iptables found", "command", f.command, "backend", f.backend, "version", fmt.Sprintf("%d.%d.%d", major, minor, patch))
	x.writers = append(x.writers, w)
	return nil
}

// writer is that of a family; nil if there is none.
func (x *xtables) writer(f plan.Family) *writer {
	i := slices.IndexFunc(x.writers, func(w *writer) bool { return w.family == f })
	if i < 0 {
		return nil
	}
	return x.writers[i]
}

// Apply renders the plan and writes what differs.
func (x *xtables) Apply(ctx context.Context, p *plan.Plan) (changed bool, err error) {
	w := x.writer(p.Family)
	want := w.render.Render(p)
	x.mu.Lock()
	defer x.mu.Unlock()
	return w.apply(ctx, want)
}

// A writer keeps the rules of one family. All but render is used with xtables.mu held.
type writer struct {
	flavour
	*xtables
	ipt *goiptables.IPTables
	// applied is what the tables hold; nil when that is not known, and the next apply writes everything.
	applied map[string]iptables.Table
	sizes   map[string]tableSize // of iptables-legacy's tables, when they were last known to hold what was applied
	sets    map[string]bool      // of ipset, that there are
	render  iptables.Renderer
}

// apply writes what differs from the last time, or everything if that is not known or no longer true.
func (w *writer) apply(ctx context.Context, want iptables.Ruleset) (changed bool, err error) {
	if changed, err = w.write(ctx, want); err != nil {
		w.applied = nil
		return changed, err
	}
	if !changed {
		return false, nil
	}
	w.applied = map[string]iptables.Table{}
	for _, t := range want.Tables {
		w.applied[t.Name] = t
		w.metrics.rules.WithLabelValues(w.family.String(), t.Name).Set(float64(t.Rules()))
	}
	return true, nil
}

func (w *writer) write(ctx context.Context, want iptables.Ruleset) (changed bool, err error) {
	if err := w.checkLegacy(ctx); err != nil {
		return false, err
	}
	if w.applied == nil {
		if err := w.findSets(); err != nil {
			return false, err
		}
	}
	if err := w.makeSets(want.Sets); err != nil {
		return false, err
	}
	if changed, err = w.writeRules(ctx, want); err == nil {
		w.dropSets(want.Sets)
	}
	return changed, err
}

func (w *writer) writeRules(ctx context.Context, want iptables.Ruleset) (changed bool, err error) {
	found := w.noteDrift(ctx)
	switch {
	case w.applied == nil:
		return true, w.applyAll(ctx, want)
	case len(found) > 0:
		return true, w.makeGood(ctx, want, found)
	default:
		return w.applyChanges(ctx, want)
	}
}

// applyChanges writes the chains that differ from those applied last.
func (w *writer) applyChanges(ctx context.Context, want iptables.Ruleset) (changed bool, err error) {
	for _, t := range want.Tables {
		old := w.applied[t.Name]
		write, gone := t.Since(old)
		if len(write)+len(gone) == 0 {
			continue
		}
		changed = true
		if err := w.restore(ctx, t.Change(write, gone, nil)); err != nil {
			return changed, fmt.Errorf("table %s: %w", t.Name, err)
		}
		w.resize(t, t.Entries()-old.Entries())
	}
	return changed, nil
}

// applyAll writes every chain, whatever is there, and removes what an earlier run left.
func (w *writer) applyAll(ctx context.Context, want iptables.Ruleset) error {
	clear(w.sizes)
	found, err := w.find(ctx)
	if err != nil {
		return err
	}
	if err := ensureHooks(w.ipt, found); err != nil {
		return err
	}
	for _, t := range want.Tables {
		old := found[t.Name]
		delete(found, t.Name)
		stale := slices.DeleteFunc(old.jumps, iptables.IsHook)
		if err := w.restore(ctx, t.Change(t.Chains, t.Without(old.chains), deletions(stale))); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
	}
	for table, old := range found {
		if err := w.restore(ctx, old.remove(table)); err != nil {
			return fmt.Errorf("remove old rules from table %s: %w", table, err)
		}
	}
	return nil
}
