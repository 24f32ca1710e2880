package rules

import (
	"bytes"
	"context"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
	"sallyport/rules/nftables"
	"sallyport/rules/plan"
)

// repairPause is for how long no more is read after something was found. Whatever keeps undoing what we write, such as a
// second Sallyport, must not have us do nothing else.
const repairPause = 200 * time.Millisecond

// followNFT calls changed for each transaction of others that touches our rules, until ctx ends.
func (x *xtables) followNFT(ctx context.Context, changed func()) error {
	if err := x.changes.Open(); err != nil {
		return err
	}
	defer x.changes.Close()
	var found []finding
	return x.changes.Follow(ctx, func(batch []nftables.Change) {
		found = x.collect(batch, found)
		if !x.drift.any() {
			return
		}
		changed()
		select {
		case <-ctx.Done():
		case <-time.After(repairPause):
		}
	})
}

// collect adds to the drift what is found up to the last change of each transaction, and returns what is left. No batch at all
// means that some were lost.
func (x *xtables) collect(batch []nftables.Change, found []finding) []finding {
	if batch == nil {
		for _, w := range x.writers {
			x.drift.add("", finding{family: w.family, kind: driftUnknown})
		}
	}
	for _, c := range batch {
		if f, ok := lost(c); ok && x.writer(f.family) != nil {
			found = append(found, f)
		}
		if by, isEnd := c.By(); isEnd && len(found) > 0 {
			x.drift.add(by, found...)
			found = nil
		}
	}
	return found
}

// lost says what a change means for our rules. Others may make chains, and change rules that have nothing to do with ours.
func lost(c nftables.Change) (finding, bool) {
	f := finding{table: c.Table}
	if f.table != "filter" && f.table != "nat" {
		return finding{}, false
	}
	switch c.Family {
	case unix.NFPROTO_IPV4:
		f.family = plan.IPv4
	case unix.NFPROTO_IPV6:
		f.family = plan.IPv6
	default:
		return finding{}, false
	}
	switch c.Type {
	case unix.NFT_MSG_DELTABLE:
		f.kind = driftTable
		return f, true
	case unix.NFT_MSG_DELCHAIN:
		f.kind, f.chain = driftChain, c.Attribute(unix.NFTA_CHAIN_NAME)
		return f, strings.HasPrefix(f.chain, iptables.Prefix)
	case unix.NFT_MSG_NEWRULE:
		f.kind, f.chain = driftRules, c.Attribute(unix.NFTA_RULE_CHAIN)
		return f, strings.HasPrefix(f.chain, iptables.Prefix)
	case unix.NFT_MSG_DELRULE:
		f.kind, f.chain = driftRules, c.Attribute(unix.NFTA_RULE_CHAIN)
		if strings.HasPrefix(f.chain, iptables.Prefix) {
			return f, true
		}
		f.kind = driftHook
		return f, iptables.IsHooked(f.table, f.chain) && bytes.Contains(c.Data, []byte(iptables.Prefix)) // the target's name
	}
	return finding{}, false
}
