package rules

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
)

// A driftKind says what was done to our rules; it is a metric label.
type driftKind int

const (
	driftUnknown driftKind = iota // so much changed at once that it was not all seen
	driftTable                    // a table with our chains was removed
	driftHook                     // a jump from a built-in chain to ours was removed
	driftChain                    // a chain of ours was removed
	driftRules                    // rules were removed from, or added to, a chain of ours
)

// String gives the label of the metric.
func (k driftKind) String() string {
	return [...]string{"unknown", "table", "hook", "chain", "rules"}[k]
}

// A finding is one thing that another program did to our rules.
type finding struct {
	family       plan.Family
	kind         driftKind
	table, chain string
}

// String gives "family table kind chain", without what is not known.
func (f finding) String() string {
	return strings.Join(strings.Fields(fmt.Sprint(f.family, " ", f.table, " ", f.kind, " ", f.chain)), " ")
}

// compare puts first what matters most.
func (f finding) compare(o finding) int {
	return cmp.Or(cmp.Compare(f.kind, o.kind), cmp.Compare(f.family, o.family), cmp.Compare(f.table, o.table), cmp.Compare(f.chain, o.chain))
}

// A drift collects what watch finds until apply makes it good.
type drift struct {
	mu    sync.Mutex
	found map[finding]bool
	by    string // the program, where the kernel says
}

// add is called from watch. by is empty where it is not known.
func (d *drift) add(by string, found ...finding) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found == nil {
		d.found = map[finding]bool{}
	}
	for _, f := range found {
		d.found[f] = true
	}
	d.by = cmp.Or(by, d.by)
}

func (d *drift) any() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.found) > 0
}

// take takes out what concerns a family. What comes later is for the next apply: it may undo what this one is about to write.
func (d *drift) take(family plan.Family) (found []finding, by string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.found {
		if f.family == family {
			found = append(found, f)
			delete(d.found, f)
		}
	}
	slices.SortFunc(found, finding.compare)
	by = d.by
	if len(d.found) == 0 {
		d.by = ""
	}
	return found, by
}

// noteDrift counts and logs what was found since the last time.
func (w *writer) noteDrift(ctx context.Context) []finding {
	found, by := w.drift.take(w.family)
	if len(found) == 0 {
		return nil
	}
	for _, f := range found {
		w.metrics.drift.WithLabelValues(f.family.String(), f.table, f.kind.String()).Inc()
	}
	const named = 5 // enough to see what happened
	attrs := []slog.Attr{slog.Any("found", found[:min(len(found), named)]), slog.Int("findings", len(found))}
	if by != "" {
		attrs = append(attrs, slog.String("by", by))
	}
	w.log.LogAttrs(ctx, slog.LevelWarn, "another program changed rules that are Sallyport's: they are written anew", attrs...)
	return found
}

// makeGood repairs what was found, which takes milliseconds unless that is much, and then writes everything anew: that
// takes seconds with many services, and is for what was not found.
func (w *writer) makeGood(ctx context.Context, want iptables.Ruleset, found []finding) error {
	const few = 50
	if len(found) <= few {
		if err := w.mend(ctx, want, found); err != nil {
			w.log.WarnContext(ctx, "rules are not mended one by one", "err", err)
		}
	}
	return w.rewrite(ctx, want)
}

// mend writes the chains that were found changed, and makes the hooks that were found missing. The filter table, which
// guards VIPs, comes first.
func (w *writer) mend(ctx context.Context, want iptables.Ruleset, found []finding) error {
	damaged := map[finding]bool{}
	for _, f := range found {
		if f.kind == driftTable || f.kind == driftUnknown {
			return nil
		}
		damaged[finding{table: f.table, chain: f.chain}] = true
	}
	for _, t := range want.Tables {
		whole := slices.DeleteFunc(slices.Clone(w.applied[t.Name].Chains), func(c iptables.Chain) bool {
			return damaged[finding{table: t.Name, chain: c.Name}]
		})
		hooks, err := missingHooks(w.ipt, func(h iptables.Hook) bool {
			return h.Table == t.Name && damaged[finding{table: h.Table, chain: h.From}]
		})
		if err != nil {
			return err
		}
		write, _ := t.Since(iptables.Table{Chains: whole})
		if len(write)+len(hooks) == 0 {
			continue
		}
		if err := w.restore(ctx, t.Change(write, nil, hooks)); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
	}
	return nil
}

// rewrite writes every chain and hook without reading what is there, which takes long with many rules.
func (w *writer) rewrite(ctx context.Context, want iptables.Ruleset) error {
	clear(w.sizes)
	for _, t := range want.Tables {
		hooks, err := missingHooks(w.ipt, func(h iptables.Hook) bool { return h.Table == t.Name })
		if err != nil {
			return err
		}
		gone := t.Without(w.applied[t.Name].Names())
		if err := w.restore(ctx, t.Change(t.Chains, gone, hooks)); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
	}
	return nil
}
