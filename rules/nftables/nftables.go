// Package nftables is the dataplane of tables: it renders a plan as one table of nftables a family, in which maps lead from
// address, protocol and port to an endpoint, and keeps the kernel's tables in step with plans.
//
// Render is pure. Dataplane writes only what differs from what it wrote last, each time as one transaction, and owns exactly
// the tables named sallyport. README.md has the packets' way.
package nftables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"sync"

	"sigs.k8s.io/knftables"

	"sallyport/rules/plan"
)

// Options are the settings of a Dataplane. The zero value works.
type Options struct {
	// Log takes what an operator should know; nil discards it.
	Log *slog.Logger
	// Noted is given what others change in tables that are not ours, and says whether Watch is to call changed for it; nil never does.
	Noted func(Change) bool
}

// A Dataplane keeps nftables in step with plans. Its methods may be called at the same time; Apply calls wait for each other.
type Dataplane struct {
	log     *slog.Logger
	noted   func(Change) bool
	nft     string // the command
	tables  map[plan.Family]knftables.Interface
	changes Changes
	drift   drift

	mu        sync.Mutex
	renderers map[plan.Family]*Renderer
	applied   map[plan.Family]Table // what the kernel holds, as far as that is known
}

const advice = `nftables 1.0.1 and Linux 5.13 or later are needed: install nftables ("apt-get install nftables") and see that nft is in ` +
	`PATH, or set l4.dataplane: iptables`

// New finds nft and sees that it and the kernel can do what is asked of them. It fails where they cannot, or without the
// privilege (CAP_NET_ADMIN), and then says what to do.
func New(o Options) (*Dataplane, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Noted == nil {
		o.Noted = func(Change) bool { return false }
	}
	d := &Dataplane{log: o.Log, noted: o.Noted, tables: map[plan.Family]knftables.Interface{},
		renderers: map[plan.Family]*Renderer{}, applied: map[plan.Family]Table{}}
	var err error
	if d.nft, err = exec.LookPath("nft"); err != nil {
		return nil, fmt.Errorf("find nft: %w: %s", err, advice)
	}
	for _, f := range plan.Families {
		d.renderers[f] = new(Renderer)
		// knftables is for what is small. Elements are written by ourselves: it would spend a command on each, and would not say
		// which process makes the change.
		d.tables[f], err = knftables.New(knftables.Family(wordsOf(f).ip), Name, knftables.NoObjectCommentEmulation)
		if err != nil && f == plan.IPv4 { // a kernel without IPv6 serves IPv4
			return nil, fmt.Errorf("use nft: %w: %s", err, advice)
		}
	}
	return d, nil
}

// Mute keeps the changes of a process out of Watch, until Mute(0). It is for who calls neither Apply nor Remove meanwhile.
func (d *Dataplane) Mute(pid int) error { return d.changes.Mute(pid) }

// Text prints the tables of plans as commands that nft -f reads.
func Text(plans ...*plan.Plan) string {
	var b bytes.Buffer
	for _, p := range plans {
		_, _ = Render(p).WriteTo(&b) // a Buffer takes all
	}
	return b.String()
}

// Apply makes the kernel's table of the plan's family that of the plan, and leaves the other family's alone. It says whether
// it wrote anything. After an error, the kernel holds what it held before, and the next call writes everything anew.
func (d *Dataplane) Apply(ctx context.Context, p *plan.Plan) (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.renderers[p.Family].Render(p)
	old, known := d.applied[p.Family]
	if d.drift.take(p.Family) {
		known = false
	}
	delete(d.applied, p.Family)
	if known {
		changed, err = d.update(ctx, old, next)
	} else {
		changed, err = true, d.replace(ctx, next)
	}
	if err != nil {
		return changed, fmt.Errorf("apply table %s: %w", next.name(), err)
	}
	if !known {
		old = d.held(ctx, next)
	}
	d.applied[p.Family] = d.sweep(ctx, old, next)
	return changed, nil
}

// held is a table of which only the chains are known, by name: those that the kernel has.
func (d *Dataplane) held(ctx context.Context, t Table) Table {
	names, err := d.chains(ctx, t.Family)
	if err != nil {
		d.log.WarnContext(ctx, "chains of an earlier run may be left", "table", t.name(), "err", err)
	}
	held := Table{Family: t.Family}
	for _, name := range slices.Sorted(slices.Values(names)) {
		held.Chains = append(held.Chains, Chain{Name: name})
	}
	return held
}

// sweep removes the chains that nothing leads to any more, and returns what the kernel then holds. It is a transaction of its own:
// kernels before 6.2 refuse to remove a chain in the one that removes the last element which leads there.
func (d *Dataplane) sweep(ctx context.Context, old, next Table) Table {
	removal := next.removal(old)
	if len(removal) == 0 {
		return next
	}
	if err := d.run(ctx, removal); err != nil {
		d.log.WarnContext(ctx, "chains that nothing leads to stay until the next change removes them", "table", next.name(), "err", err)
		return next.with(d.held(ctx, next))
	}
	return next
}

// update writes what differs, or everything if that fails: then the kernel does not hold what we think it does.
func (d *Dataplane) update(ctx context.Context, old, next Table) (changed bool, err error) {
	change := next.since(old)
	if len(change) == 0 {
		return false, nil
	}
	if err := d.run(ctx, change); err != nil {
		d.log.WarnContext(ctx, "rules could not be changed: all are written anew", "table", next.name(), "err", err)
		return true, d.replace(ctx, next)
	}
	return true, nil
}

// replace writes everything. Where nft says that what is there cannot be built upon, as it is another version's, it goes first,
// with the state of clients.
func (d *Dataplane) replace(ctx context.Context, next Table) error {
	err := d.run(ctx, next.replacement())
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || !exit.Exited() {
		return err // also where nft was killed, such as for want of memory
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "add table %[1]s\ndelete table %[1]s\n", next.name())
	_, _ = next.WriteTo(&b) // a Buffer takes all
	if again := d.run(ctx, b.Bytes()); again != nil {
		return errors.Join(err, again)
	}
	d.log.WarnContext(ctx, "rules of another kind were replaced: which client has which endpoint is forgotten", "table", next.name(), "err", err)
	return nil
}

// Alone says whether the kernel has, of this run or an earlier one, the chain that remembers that forwarding of the family was
// off before it was there.
func (d *Dataplane) Alone(ctx context.Context, f plan.Family) (bool, error) {
	chains, err := d.chains(ctx, f)
	return slices.Contains(chains, aloneChain), err
}

// Remove removes our tables, also those of an earlier run, and says what that was.
func (d *Dataplane) Remove(ctx context.Context) (removed []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range plan.Families {
		chains, err := d.chains(ctx, f)
		if err != nil {
			return removed, err
		}
		if len(chains) == 0 { // there is none without
			continue
		}
		delete(d.applied, f)
		if err := d.run(ctx, fmt.Appendf(nil, "delete table %s %s\n", wordsOf(f).ip, Name)); err != nil {
			return removed, fmt.Errorf("remove table %s %s: %w", wordsOf(f).ip, Name, err)
		}
		removed = append(removed, fmt.Sprintf("table %s %s of nft, with %d chains", wordsOf(f).ip, Name, len(chains)))
	}
	return removed, nil
}

// chains lists those of our table; none if there is no table.
func (d *Dataplane) chains(ctx context.Context, f plan.Family) ([]string, error) {
	if d.tables[f] == nil {
		return nil, nil
	}
	chains, err := d.tables[f].List(ctx, "chains")
	if knftables.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list chains of table %s %s: %w", wordsOf(f).ip, Name, err)
	}
	return chains, nil
}
