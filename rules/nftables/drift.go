package nftables

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/rules/plan"
)

// repairPause is for how long no more is read after something was found. Whatever keeps undoing what we write, such as a
// second Sallyport, must not have us do nothing else.
const repairPause = 200 * time.Millisecond

// A drift says whose table others have changed.
type drift struct {
	mu    sync.Mutex
	found map[plan.Family]bool
}

func (d *drift) add(families ...plan.Family) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found == nil {
		d.found = map[plan.Family]bool{}
	}
	for _, f := range families {
		d.found[f] = true
	}
}

// take says whether there was any, and forgets it. What comes later is for the next Apply: it may undo what this one is about
// to write.
func (d *drift) take(f plan.Family) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := d.found[f]
	delete(d.found, f)
	return found
}

// Watch calls changed when others change our tables, until ctx ends: the next Apply writes what they changed anew. It begins in
// the network namespace of the calling thread.
func (d *Dataplane) Watch(ctx context.Context, changed func()) error {
	if err := d.changes.Open(); err != nil {
		return err
	}
	defer d.changes.Close()
	var found []plan.Family // in the transaction that is being read
	noted := false          // something of others in it
	return d.changes.Follow(ctx, func(batch []Change) {
		if batch == nil {
			d.report(ctx, "", plan.Families[:]...)
			changed()
		}
		for _, c := range batch {
			if by, isEnd := c.By(); isEnd && (noted || len(found) > 0) {
				d.report(ctx, by, found...)
				found, noted = nil, false
				changed()
				pause(ctx)
			}
			if f, ours := familyOf(c); ours {
				found = append(found, f)
			} else if d.noted(c) {
				noted = true
			}
		}
	})
}

// report is of no families where others changed what is theirs.
func (d *Dataplane) report(ctx context.Context, by string, families ...plan.Family) {
	if len(families) == 0 {
		return
	}
	d.drift.add(families...)
	d.log.WarnContext(ctx, "rules were changed by another program", "table", Name, "by", by)
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(repairPause):
	}
}

// familyOf says which of our tables a change is of, if any.
func familyOf(c Change) (f plan.Family, ours bool) {
	switch {
	case c.Table != Name:
		return 0, false
	case c.Family == unix.NFPROTO_IPV4:
		return plan.IPv4, true
	case c.Family == unix.NFPROTO_IPV6:
		return plan.IPv6, true
	default:
		return 0, false
	}
}
