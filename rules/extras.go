package rules

import (
	"context"
	"slices"
	"time"

	"sallyport/watcher/model"
)

// Limits, and affinity that is kept to exactly, take parts of the kernel that it may not have: ipset, hashlimit, connlimit. A
// Service that asks for them must not keep all others from being served, so where rules with them are refused, they are
// written without, and that is a Problem of each Service that asks.

// extrasPause is for how long no rules with extras are tried after they were refused.
const extrasPause = 10 * time.Minute

// hasExtras says whether a Service asks for some.
func hasExtras(s *model.Snapshot) bool {
	return slices.ContainsFunc(s.Services, func(svc model.Service) bool { return svc.Limits != nil || isExact(&svc) })
}

func isExact(svc *model.Service) bool { return svc.Affinity != nil && svc.Affinity.Exact }

// giveUpExtras is called when rules were refused. It says whether it is worth trying without extras.
func (k *Kernel) giveUpExtras(ctx context.Context, s *model.Snapshot, err error) bool {
	if !hasExtras(s) || ctx.Err() != nil {
		return false
	}
	k.log.ErrorContext(ctx, "rules with limits or exact affinity are refused: they are left out for a while", "err", err)
	k.plainUntil = time.Now().Add(extrasPause)
	return true
}

// withoutExtras leaves them out, if that is how it has to be.
func (k *Kernel) withoutExtras(s *model.Snapshot) *model.Snapshot {
	if !time.Now().Before(k.plainUntil) || !hasExtras(s) {
		return s
	}
	const lacks = "rules for it were refused: see the log, and whether the kernel has ipset, xt_set, xt_hashlimit and xt_connlimit"
	out := *s
	out.Services = slices.Clone(s.Services)
	for i := range out.Services {
		svc := &out.Services[i]
		if svc.Limits != nil {
			svc.Limits = nil
			k.problem(svc.Ref, "metadata.annotations", model.ReasonUnsupported, "its connections are not limited: %s", lacks)
		}
		if isExact(svc) {
			loose := *svc.Affinity
			loose.Exact = false
			svc.Affinity = &loose
			k.problem(svc.Ref, "spec.sessionAffinity", model.ReasonUnsupported, "clients keep to endpoints by a hash, without timeout: %s", lacks)
		}
	}
	return &out
}
