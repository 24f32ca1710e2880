package conntrack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls is where the settings of connection tracking are, as the calling thread's network namespace has them.
const sysctls = "/proc/sys/net/netfilter"

const (
	entriesPerCore = 32 << 10 // as kube-proxy (conntrack.maxPerCore)
	minEntries     = 128 << 10
	maxEntries     = 4 << 20
	// An entry with what NAT, counting and events add takes up to 400 bytes of kernel memory, and its place in the table of hashes
	// up to 16. They may take an eighth of the machine's memory, which has little else to do.
	entrySize     = 512
	memoryPortion = 8

	bucketPortion = 4 // entries in a bucket when the table is full

	establishedTimeout = 24 * 60 * 60 // seconds; no keepalive is longer in coming, by default two hours (tcp(7))
	closeWaitTimeout   = 60 * 60      // seconds: a server may go on sending to a client that has closed its half
)

// A setting is a sysctl of connection tracking, and what it is to be.
type setting struct {
	name  string
	want  uint64
	exact bool // otherwise more will do
}

// settings are what connection tracking needs, in the order in which they are set.
func settings(limit uint64) []setting {
	return []setting{
		{"nf_conntrack_buckets", limit / bucketPortion, false},
		{"nf_conntrack_max", limit, false},
		{"nf_conntrack_tcp_timeout_established", establishedTimeout, false},
		{"nf_conntrack_tcp_timeout_close_wait", closeWaitTimeout, false},
		{"nf_conntrack_acct", 1, true},
		// With 2, the default, the end of a flow that began while no one was listening is never told of.
		{"nf_conntrack_events", 1, true},
	}
}

// capacity is how many entries a machine should have room for.
func capacity(memory uint64, cores int) uint64 {
	return min(max(memory/memoryPortion/entrySize, uint64(cores)*entriesPerCore, minEntries), maxEntries)
}

// limit is Options.Max, or else what suits this machine.
func (o Options) limit() uint64 {
	if o.Max != 0 {
		return uint64(o.Max)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return capacity(0, runtime.NumCPU())
	}
	return capacity(uint64(info.Totalram)*uint64(info.Unit), runtime.NumCPU()) //nolint:unconvert // Totalram has 32 bits on some machines
}

// Size makes room in the kernel's table, has it count, and keeps it from forgetting TCP connections that are merely quiet
// (net.netfilter.nf_conntrack_*, see the kernel's nf_conntrack-sysctl). Values are only ever raised, and stay when the
// process ends. It returns what could not be set, such as the size of the table inside of a network namespace, and logs that
// once; it fails if the kernel tracks no connections, as before its first rule of NAT.
func Size(o Options) (unset []string, err error) {
	return size(sysctls, o, true)
}

// Check returns what Size would have to set, without setting it. It fails as Size does.
func Check(o Options) (unset []string, err error) {
	return size(sysctls, o, false)
}

func size(folder string, o Options, set bool) (unset []string, err error) {
	log := o.Log
	if log == nil || !set {
		log = slog.New(slog.DiscardHandler)
	}
	if _, err := os.Stat(filepath.Join(folder, "nf_conntrack_max")); err != nil {
		return nil, fmt.Errorf("size connection tracking: %w: load the kernel's module nf_conntrack", err)
	}
	for _, s := range settings(o.limit()) {
		sysctl := fmt.Sprintf("net.netfilter.%s=%d", s.name, s.want)
		changed, err := s.apply(folder, set)
		switch {
		case err != nil:
			unset = append(unset, fmt.Sprintf("%v: set %s in /etc/sysctl.d", err, sysctl))
			log.WarnContext(context.Background(), "connection tracking not set up", "sysctl", sysctl, "err", err)
		case changed:
			log.InfoContext(context.Background(), "connection tracking set up", "sysctl", sysctl)
		}
	}
	return unset, nil
}

// errUnset is for a setting that is only looked at.
var errUnset = errors.New("not set yet")

func (s setting) apply(folder string, set bool) (changed bool, err error) {
	path := filepath.Join(folder, s.name)
	text, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	value, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	if value == s.want || value > s.want && !s.exact {
		return false, nil
	}
	err = errUnset
	if set {
		err = os.WriteFile(path, []byte(strconv.FormatUint(s.want, 10)), 0o644)
	}
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		err = cause.Err
	}
	if err != nil {
		return false, fmt.Errorf("net.netfilter.%s is %d, %d is wanted: %w", s.name, value, s.want, err)
	}
	return true, nil
}
