package rules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
)

// A tableSize is what ip_tables tells of a table without copying it (struct ipt_getinfo, linux/netfilter_ipv4/ip_tables.h, and
// struct ip6t_getinfo, which is the same). Rules that come or go change it, in whichever chain they are.
type tableSize struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32 // offsets of the built-in chains
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

// sizeOf asks for the size of a table. It makes the table if there is none.
func sizeOf(f plan.Family, table string) (tableSize, error) {
	const getInfo = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	domain, level := unix.AF_INET, uintptr(unix.SOL_IP)
	if f == plan.IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	s := tableSize{}
	copy(s.name[:], table)
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, fmt.Errorf("ask for the size of %v table %s: %w", f, table, err)
	}
	defer unix.Close(fd)
	length := uint32(unsafe.Sizeof(s))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), level, getInfo,
		uintptr(unsafe.Pointer(&s)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return s, fmt.Errorf("ask for the size of %v table %s: %w", f, table, errno)
	}
	return s, nil
}

// followLegacy looks at the tables from time to time until ctx ends. That takes microseconds, but where others change
// their rules all the time, each look reads a table.
func (x *xtables) followLegacy(ctx context.Context, changed func()) {
	timer := time.NewTimer(x.legacyInterval)
	defer timer.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		start := time.Now()
		drifted, err := x.lookAtLegacy(ctx)
		timer.Reset(min(max(x.legacyInterval, 20*time.Since(start)), legacyPause))
		if err != nil && err.Error() != failed && ctx.Err() == nil {
			x.log.ErrorContext(ctx, "changes of rules by others are not noticed", "err", err)
		}
		failed = fmt.Sprint(err)
		if drifted {
			changed()
		}
	}
}

func (x *xtables) lookAtLegacy(ctx context.Context) (drifted bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, w := range x.writers {
		errs = append(errs, w.checkLegacy(ctx))
	}
	return x.drift.any(), errors.Join(errs...)
}

// checkLegacy adds to the drift what others did to iptables-legacy's tables since they were last known to be right. A
// table is read only if it has changed its size.
func (w *writer) checkLegacy(ctx context.Context) error {
	if w.flavour.backend != BackendLegacy {
		return nil
	}
	for name, t := range w.applied {
		size, err := sizeOf(w.family, name)
		if err != nil {
			return err
		}
		if size == w.sizes[name] {
			continue
		}
		out, err := w.save(ctx, "-t", name)
		if err != nil {
			return err
		}
		if found := missing(w.family, t, out); len(found) > 0 {
			w.drift.add("", found...)
			continue
		}
		w.sizes[name] = size
	}
	return nil
}

// resize is called after a change of so many entries. If another program changed the table meanwhile, it will be read.
func (w *writer) resize(t iptables.Table, entries int) {
	before, known := w.sizes[t.Name]
	delete(w.sizes, t.Name)
	if !known {
		return
	}
	if now, err := sizeOf(w.family, t.Name); err == nil && int(now.entries)-int(before.entries) == entries {
		w.sizes[t.Name] = now
	}
}

// missing compares the table with the output of iptables-save by the number of rules in each chain: these print rules
// otherwise than they were given.
func missing(f plan.Family, t iptables.Table, saved []byte) (found []finding) {
	rules, lines := map[string]int{}, map[string]bool{}
	for line := range bytes.Lines(saved) {
		text := strings.TrimSpace(string(line))
		switch {
		case strings.HasPrefix(text, ":"+iptables.Prefix):
			name, _, _ := strings.Cut(text[1:], " ")
			rules[name] += 0
		case strings.HasPrefix(text, "-A "+iptables.Prefix):
			name, _, _ := strings.Cut(text[len("-A "):], " ")
			rules[name]++
		case strings.HasPrefix(text, "-A "):
			lines[text] = true
		}
	}
	for _, h := range iptables.Hooks {
		if h.Table == t.Name && !lines[h.Line()] {
			found = append(found, finding{f, driftHook, t.Name, h.From})
		}
	}
	for _, c := range t.Chains {
		n, ok := rules[c.Name]
		switch {
		case !ok:
			found = append(found, finding{f, driftChain, t.Name, c.Name})
		case n != c.Rules():
			found = append(found, finding{f, driftRules, t.Name, c.Name})
		}
	}
	return found
}
