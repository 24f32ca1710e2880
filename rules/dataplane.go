package rules

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"

	"sallyport/rules/nftables"
	"sallyport/rules/plan"
)

// A Dataplane is a kind of rules.
type Dataplane string

// The dataplanes of the kernel.
const (
	DataplaneIPTables Dataplane = "iptables"
	DataplaneNFTables Dataplane = "nftables"
)

// A dataplane writes plans to the kernel.
type dataplane interface {
	// Apply makes the kernel's rules those of the plan, and leaves the other family's alone. It says whether it wrote any. After
	// an error the next call writes everything anew.
	Apply(ctx context.Context, p *plan.Plan) (changed bool, err error)
	// Watch calls changed when others change what was applied, until ctx ends. The next Apply makes that good. It begins in the
	// network namespace of the calling thread.
	Watch(ctx context.Context, changed func()) error
}

// A holder is a part of the kernel that may hold rules of ours, of this run or of an earlier one with other settings.
type holder interface {
	// Alone says whether it has the chain that remembers that forwarding of the family was off before us.
	Alone(ctx context.Context, f plan.Family) (bool, error)
	// Remove removes what is ours, and says what that was.
	Remove(ctx context.Context) (removed []string, err error)
}

// A place is a holder, by the command that shows what it holds.
type place struct {
	holder
	command string
}

// places are those that this machine has: what is not installed holds nothing.
func places() (list []place) {
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		for _, f := range plan.Families {
			if c, err := findFlavour(b, f); err == nil {
				list = append(list, place{c, c.command})
			}
		}
	}
	list = append(list, place{ipsets{}, "ipset"}) // behind those whose rules use them
	if d, err := nftables.New(nftables.Options{}); err == nil {
		list = append(list, place{d, nftCommand})
	}
	return list
}

// nftCommand shows what the dataplane nftables holds.
const nftCommand = "nft"

// openDataplane finds the tools of the dataplane. It says why IPv6 is not served, if so.
func (k *Kernel) openDataplane() (noIPv6 string, err error) {
	_, noIPv6 = hasIPv6()
	if k.o.Dataplane == DataplaneNFTables {
		k.isOwn = func(p place) bool { return p.command == nftCommand }
		k.rules, err = newPassing(k.log)
		return noIPv6, err
	}
	x, err := newXtables(k.o, k.log, k.metrics)
	if err != nil {
		return "", err
	}
	k.rules = x
	k.isOwn = func(p place) bool {
		switch h := p.holder.(type) {
		case flavour:
			return h.backend == x.backend()
		case ipsets:
			return true
		default:
			return false
		}
	}
	if noIPv6 == "" {
		if err := x.addIPv6(); err != nil {
			noIPv6 = err.Error()
		}
	}
	return noIPv6, nil
}

// turnedOn says whether a run of Sallyport turned forwarding on. Of places that are not the dataplane's, leaveOthers tells if they
// cannot be read.
func (k *Kernel) turnedOn(ctx context.Context, f plan.Family) (bool, error) {
	own, others := k.divide()
	if on, _ := anyAlone(ctx, others, f); on {
		return true, nil
	}
	return anyAlone(ctx, own, f)
}

// divide tells the dataplane's own places from the others.
func (k *Kernel) divide() (own, others []place) {
	for _, p := range places() {
		if k.isOwn(p) {
			own = append(own, p)
		} else {
			others = append(others, p)
		}
	}
	return own, others
}

func anyAlone(ctx context.Context, places []place, f plan.Family) (bool, error) {
	var errs []error
	for _, p := range places {
		alone, err := p.Alone(ctx, f)
		if alone {
			return true, nil
		}
		errs = append(errs, err)
	}
	return false, errors.Join(errs...)
}

// leaveOthers removes our rules from where an earlier run with other settings may have left them. What is installed, but
// not in the kernel, cannot be read and holds none.
func (k *Kernel) leaveOthers(ctx context.Context) {
	_, others := k.divide()
	for _, p := range others {
		if f, ok := p.holder.(flavour); ok {
			d, ok := k.rules.(passing)
			f.keepPass = ok && d.keeps(f)
			p.holder = f
		}
		removed, err := p.Remove(ctx)
		if len(removed) > 0 {
			k.log.InfoContext(ctx, "rules of an earlier run removed", "removed", removed)
		}
		if err != nil && k.isNews(p.command, err.Error()) {
			level := slog.LevelWarn
			if errors.Is(err, fs.ErrPermission) { // as it is by intent for who is not root
				level = slog.LevelInfo
			}
			k.log.Log(ctx, level, "rules cannot be read: what an earlier run left there would stay", "command", p.command, "err", err)
		}
	}
}
