package rules

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
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

func (k driftKind) String() string {
	return [...]string{"unknown", "table", "hook", "chain", "rules"}[k]
}

// A finding is one thing that another program did to our rules.
type finding struct {
	kind         driftKind
	table, chain string
}

func (f finding) String() string {
	return strings.Join(strings.Fields(fmt.Sprint(f.table, " ", f.kind, " ", f.chain)), " ")
}

// compare puts first what matters most.
func (f finding) compare(o finding) int {
	return cmp.Or(cmp.Compare(f.kind, o.kind), cmp.Compare(f.table, o.table), cmp.Compare(f.chain, o.chain))
}

// A drift collects what Watch finds until Reconcile makes it good.
type drift struct {
	mu    sync.Mutex
	found map[finding]bool
	by    string // the program, where the kernel says
}

// add is called from Watch. by is empty where it is not known.
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

// take empties the collection. What comes later is for the next Reconcile: it may undo what this one is about to write.
func (d *drift) take() (found []finding, by string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	found, by = slices.SortedFunc(maps.Keys(d.found), finding.compare), d.by
	d.found, d.by = nil, ""
	return found, by
}

// noteDrift counts and logs what was found since the last time, and says whether that was anything.
func (k *Kernel) noteDrift(ctx context.Context) bool {
	found, by := k.drift.take()
	if len(found) == 0 {
		return false
	}
	const named = 5 // in the log: enough to see what happened
	var first []string
	for i, f := range found {
		k.metrics.drift.WithLabelValues(f.table, f.kind.String()).Inc()
		if i < named {
			first = append(first, f.String())
		}
	}
	attrs := []slog.Attr{slog.Any("lost", first), slog.Int("findings", len(found))}
	if by != "" {
		attrs = append(attrs, slog.String("by", by))
	}
	k.log.LogAttrs(ctx, slog.LevelWarn, "another program changed Sallyport's rules, which are written anew", attrs...)
	return true
}

// rewrite writes every chain and hook without reading what is there, which takes long with many rules. The chains of a
// table come before the jumps to them, and the filter table, which guards VIPs, comes first.
func (k *Kernel) rewrite(ctx context.Context, want Ruleset) error {
	clear(k.sizes)
	for _, t := range want.Tables {
		gone := t.without(k.applied[t.Name].names())
		if err := k.flavour.restore(ctx, t.change(t.Chains, gone, nil)); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		if err := restoreHooks(k.ipt, t.Name); err != nil {
			return err
		}
	}
	return nil
}
