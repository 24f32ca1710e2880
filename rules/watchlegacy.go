package rules

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/rules/iptables"
)

// A tableSize is what ip_tables tells of a table without copying it (struct ipt_getinfo, linux/netfilter_ipv4/ip_tables.h). Rules
// that come or go change it, in whichever chain they are.
type tableSize struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32 // offsets of the built-in chains
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

// sizeOf asks for the size of a table. It makes the table if there is none.
func sizeOf(table string) (tableSize, error) {
	const getInfo = 64 // IPT_SO_GET_INFO
	s := tableSize{}
	copy(s.name[:], table)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, fmt.Errorf("ask for the size of table %s: %w", table, err)
	}
	defer unix.Close(fd)
	length := uint32(unsafe.Sizeof(s))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_IP, getInfo,
		uintptr(unsafe.Pointer(&s)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return s, fmt.Errorf("ask for the size of table %s: %w", table, errno)
	}
	return s, nil
}

// followLegacy looks at the tables from time to time until ctx ends. That takes microseconds, but where others change
// their rules all the time, each look reads a table.
func (k *Kernel) followLegacy(ctx context.Context, changed func()) {
	timer := time.NewTimer(k.legacyInterval)
	defer timer.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		start := time.Now()
		drifted, err := k.lookAtLegacy(ctx)
		timer.Reset(min(max(k.legacyInterval, 20*time.Since(start)), legacyPause))
		if err != nil && err.Error() != failed && ctx.Err() == nil {
			k.log.ErrorContext(ctx, "changes of rules by others are not noticed", "err", err)
		}
		failed = fmt.Sprint(err)
		if drifted {
			changed()
		}
	}
}

func (k *Kernel) lookAtLegacy(ctx context.Context) (drifted bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	err = k.checkLegacy(ctx)
	return k.drift.any(), err
}

// checkLegacy adds to the drift what others did to iptables-legacy's tables since they were last known to be right. A
// table is read only if it has changed its size.
func (k *Kernel) checkLegacy(ctx context.Context) error {
	if k.flavour.backend != BackendLegacy {
		return nil
	}
	for name, t := range k.applied {
		size, err := sizeOf(name)
		if err != nil {
			return err
		}
		if size == k.sizes[name] {
			continue
		}
		out, err := k.flavour.save(ctx, "-t", name)
		if err != nil {
			return err
		}
		if found := missing(t, out); len(found) > 0 {
			k.drift.add("", found...)
			continue
		}
		k.sizes[name] = size
	}
	return nil
}

// resize is called after a change of so many entries. If another program changed the table meanwhile, it will be read.
func (k *Kernel) resize(t iptables.Table, entries int) {
	before, known := k.sizes[t.Name]
	delete(k.sizes, t.Name)
	if !known {
		return
	}
	if now, err := sizeOf(t.Name); err == nil && int(now.entries)-int(before.entries) == entries {
		k.sizes[t.Name] = now
	}
}

// missing compares the table with the output of iptables-save by the number of rules in each chain: these print rules
// otherwise than they were given.
func missing(t iptables.Table, saved []byte) (found []finding) {
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
			found = append(found, finding{driftHook, t.Name, h.From})
		}
	}
	for _, c := range t.Chains {
		n, ok := rules[c.Name]
		switch {
		case !ok:
			found = append(found, finding{driftChain, t.Name, c.Name})
		case n != c.Rules():
			found = append(found, finding{driftRules, t.Name, c.Name})
		}
	}
	return found
}
