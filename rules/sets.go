package rules

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
)

// maxClients is how many clients a set has room for. Where there are more, the hash alone chooses their endpoints.
const maxClients = 1 << 20

// ipsets are the sets of ipset whose names begin as those of our chains do. What they hold is state of clients: they stay for as long
// as rules want them.
type ipsets struct{}

// Alone says no: sets remember nothing of forwarding.
func (ipsets) Alone(context.Context, plan.Family) (bool, error) { return false, nil }

// Remove destroys all of them. The rules that use them have to be gone.
func (i ipsets) Remove(context.Context) (removed []string, err error) {
	count := 0
	for _, f := range plan.Families {
		names, err := i.list(f)
		if err != nil {
			return removed, err
		}
		for _, name := range names {
			if err := i.destroy(name); err != nil {
				return removed, err
			}
		}
		count += len(names)
	}
	if count > 0 {
		removed = append(removed, fmt.Sprintf("%d sets of ipset", count))
	}
	return removed, nil
}

// create makes a set, unless it is there.
func (ipsets) create(s iptables.Set) error {
	timeout := uint32(s.Timeout / time.Second)
	o := netlink.IpsetCreateOptions{Family: uint8(newStack(s.Family).number), Timeout: &timeout, MaxElements: maxClients}
	err := netlink.IpsetCreate(s.Name, "hash:ip", o)
	if err != nil && !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make set %s: %w", s.Name, err)
	}
	return nil
}

func (ipsets) destroy(name string) error {
	if err := netlink.IpsetDestroy(name); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove set %s: %w", name, err)
	}
	return nil
}

// list gives the names of a family's sets, but not what they hold. A kernel without ipset has none.
func (ipsets) list(f plan.Family) (names []string, err error) {
	const listHeader = 1 << 2 // IPSET_FLAG_LIST_HEADER
	request := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_NETLINK, Version: nl.NFNETLINK_V0})
	request.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	request.AddData(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_FLAGS | nl.NLA_F_NET_BYTEORDER, Value: listHeader})
	answers, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sets of ipset: %w", err)
	}
	for _, data := range answers {
		if name := ownSet(data, f); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// ownSet gives the name of a set of ours from an answer of the kernel, or is empty.
func ownSet(data []byte, f plan.Family) string {
	if len(data) < nl.SizeofNfgenmsg {
		return ""
	}
	attrs, err := nl.ParseRouteAttr(data[nl.SizeofNfgenmsg:])
	if err != nil {
		return ""
	}
	name := attribute(attrs, nl.IPSET_ATTR_SETNAME)
	ofFamily := slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
		return a.Attr.Type == nl.IPSET_ATTR_FAMILY && len(a.Value) > 0 && a.Value[0] == uint8(newStack(f).number)
	})
	if !ofFamily || !strings.HasPrefix(name, iptables.Prefix) {
		return ""
	}
	return name
}

// makeSets makes those that rules to come want.
func (w *writer) makeSets(want []iptables.Set) error {
	for _, s := range want {
		if w.sets[s.Name] {
			continue
		}
		if err := (ipsets{}).create(s); err != nil {
			return err
		}
		w.sets[s.Name] = true
	}
	return nil
}

// dropSets removes those that no rules want any more. Another backend's rules may still hold one: then it is for the next time.
func (w *writer) dropSets(want []iptables.Set) {
	for name := range w.sets {
		if _, wanted := slices.BinarySearchFunc(want, name, func(s iptables.Set, name string) int { return cmp.Compare(s.Name, name) }); wanted {
			continue
		}
		if err := (ipsets{}).destroy(name); err != nil {
			w.log.Debug("a set that is not used any more stays", "set", name, "err", err)
			continue
		}
		delete(w.sets, name)
	}
}

// findSets learns which sets there are.
func (w *writer) findSets() error {
	names, err := ipsets{}.list(w.family)
	w.sets = map[string]bool{}
	for _, name := range names {
		w.sets[name] = true
	}
	return err
}
