package rules

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"

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
	// apply makes the kernel's rules those of the plan, and leaves the other family's alone. It says whether it wrote any.
	apply(ctx context.Context, p *plan.Plan) (changed bool, err error)
	// watch calls changed when others change what was applied, until ctx ends. The next apply makes that good.
	watch(ctx context.Context, changed func()) error
	// is says whether h holds the rules of this dataplane.
	is(h holder) bool
}

// A holder is a part of the kernel that may hold rules of ours, of this run or of an earlier one with other settings.
type holder interface {
	String() string
	// alone says whether it has the chain that remembers that forwarding was off before us.
	alone(ctx context.Context, f plan.Family) (bool, error)
	// remove removes what is ours, and says what that was.
	remove(ctx context.Context) (removed []string, err error)
}

// holders are those that this machine has: what is not installed holds nothing.
func (o Options) holders() (list []holder) {
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		for _, f := range plan.Families {
			if c, err := findFlavour(b, f); err == nil {
				list = append(list, c)
			}
		}
	}
	return list
}

// turnedOn says whether a run of Sallyport turned forwarding on. Of holders that are not in use, leaveOthers tells if they cannot
// be read.
func (k *Kernel) turnedOn(ctx context.Context, f plan.Family) (bool, error) {
	var own, others []holder
	for _, h := range k.holders {
		if k.rules.is(h) {
			own = append(own, h)
		} else {
			others = append(others, h)
		}
	}
	if on, _ := anyAlone(ctx, others, f); on {
		return true, nil
	}
	return anyAlone(ctx, own, f)
}

func anyAlone(ctx context.Context, holders []holder, f plan.Family) (bool, error) {
	var errs []error
	for _, h := range holders {
		alone, err := h.alone(ctx, f)
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
	for _, h := range k.holders {
		if k.rules.is(h) {
			continue
		}
		removed, err := h.remove(ctx)
		if len(removed) > 0 {
			k.log.InfoContext(ctx, "rules of an earlier run removed", "removed", removed)
		}
		if err != nil && k.isNews(h.String(), err.Error()) {
			level := slog.LevelWarn
			if errors.Is(err, fs.ErrPermission) { // as it is by intent for who is not root
				level = slog.LevelInfo
			}
			k.log.Log(ctx, level, "rules that an earlier run may have left would stay", "in", h.String(), "err", err)
		}
	}
}
