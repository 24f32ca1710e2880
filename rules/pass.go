package rules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
	"sallyport/rules/nftables"
	"sallyport/rules/plan"
)

// passHook is one of iptables.Hooks.
var passHook = iptables.Hook{Table: "filter", From: "FORWARD", To: iptables.Prefix + "FORWARD"}

// passInterval is how long what FORWARD was seen to hold is believed, where the kernel does not tell of changes (legacy).
const passInterval = 5 * time.Second

// A pass lets connections of the dataplane nftables through the chain FORWARD of iptables. What others drop there, such as docker
// and ufw by its policy, no chain of nftables can accept. So where it may drop, it gets the hook that it has with the
// dataplane iptables, to a chain that accepts our connections by their connmark. Where it cannot drop, nothing is made.
type pass struct {
	log      *slog.Logger
	flavours []flavour            // those of this machine
	looked   map[string]time.Time // at FORWARD, by command
	made     map[string]bool      // that have the chain, by command
	changed  atomic.Bool          // FORWARD was, since
}

func newPass(log *slog.Logger) *pass {
	p := &pass{log: log, looked: map[string]time.Time{}, made: map[string]bool{}}
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		for _, family := range plan.Families {
			if f, err := findFlavour(b, family); err == nil {
				p.flavours = append(p.flavours, f)
			}
		}
	}
	return p
}

// noteChange is given what others change in nf_tables. It says whether that may be what decides over forwarded connections.
func (p *pass) noteChange(c nftables.Change) bool {
	if c.Table != passHook.Table || c.Family != unix.NFPROTO_IPV4 && c.Family != unix.NFPROTO_IPV6 {
		return false
	}
	chain := ""
	switch c.Type {
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain = c.Attribute(unix.NFTA_CHAIN_NAME)
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain = c.Attribute(unix.NFTA_RULE_CHAIN)
	}
	if chain != passHook.From && chain != passHook.To {
		return false
	}
	p.changed.Store(true)
	return true
}

// apply looks at FORWARD of a family, in both backends, and lets our connections pass there. What cannot be read is left as it is.
func (p *pass) apply(ctx context.Context, family plan.Family, o plan.Options) (changed bool, err error) {
	if p.changed.Swap(false) {
		clear(p.looked)
	}
	var errs []error
	for _, f := range p.flavours {
		if f.family != family || time.Since(p.looked[f.command]) < passInterval {
			continue
		}
		made, err := p.open(ctx, f, o)
		changed = changed || made
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

// open makes the chain and its hook where they are needed and missing.
func (p *pass) open(ctx context.Context, f flavour, o plan.Options) (changed bool, err error) {
	d, err := f.dumpTable(ctx, passHook.Table)
	if err != nil {
		if p.looked[f.command].IsZero() {
			p.log.InfoContext(ctx, "FORWARD cannot be read: what it drops is not forwarded", "command", f.command, "err", err)
		}
		p.looked[f.command] = time.Now()
		return false, nil
	}
	p.made[f.command] = d.mayDrop(passHook)
	_, accept := iptables.Accepting(passHook.To, o)
	if !p.made[f.command] || d.holds(passHook.Table, strings.TrimPrefix(passHook.Line(), "-A "), accept) && len(d[passHook.Table].rules[passHook.To]) == 1 {
		p.looked[f.command] = time.Now()
		return false, nil
	}
	var hook []string
	if !slices.Contains(d[passHook.Table].rules[passHook.From], passHook.Line()) {
		hook = []string{fmt.Sprintf("-I %s 1 -j %s", passHook.From, passHook.To)}
	}
	chain := iptables.Chain{Name: passHook.To, Text: []byte("-A " + accept + "\n")}
	if err := f.restore(ctx, iptables.Table{Name: passHook.Table}.Change([]iptables.Chain{chain}, nil, hook)); err != nil {
		return false, fmt.Errorf("let connections pass FORWARD: %w", err)
	}
	p.log.InfoContext(ctx, "FORWARD may drop: Sallyport's connections pass before that", "command", f.command)
	p.looked[f.command] = time.Now()
	return true, nil
}

// A passing dataplane is nftables with a pass.
type passing struct {
	*nftables.Dataplane
	pass *pass
}

// newPassing finds nft, and iptables if there is one.
func newPassing(log *slog.Logger) (d passing, err error) {
	d.pass = newPass(log)
	if d.Dataplane, err = nftables.New(nftables.Options{Log: log, Noted: d.pass.noteChange}); err != nil {
		return passing{}, err
	}
	for i := range d.pass.flavours {
		if f := &d.pass.flavours[i]; f.backend == BackendNFT {
			f.mute = d.Mute
		}
	}
	return d, nil
}

// Apply writes the tables, and then has their connections pass FORWARD.
func (d passing) Apply(ctx context.Context, p *plan.Plan) (changed bool, err error) {
	if changed, err = d.Dataplane.Apply(ctx, p); err != nil {
		return changed, err
	}
	opened, err := d.pass.apply(ctx, p.Family, p.Options)
	return changed || opened, err
}

// keeps says whether the chain of iptables stands by intent.
func (d passing) keeps(f flavour) bool { return d.pass.made[f.command] }
