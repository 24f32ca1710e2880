// Package systemd speaks with the service manager: it says when the service is ready and alive, and hands it listening
// sockets to keep while one process ends and the next one starts.
//
// Nothing here fails for want of a service manager: without $NOTIFY_SOCKET, messages go nowhere and nothing is inherited.
// The protocol is that of sd_notify(3) and sd_listen_fds(3).
package systemd

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the service manager is told; sd_notify(3) lists more.
const (
	Ready    = "READY=1"    // serving: units that are ordered behind this one may start
	Stopping = "STOPPING=1" // draining: the end is near, and wanted
	alive    = "WATCHDOG=1"
)

// StoppingWithin is Stopping with the time that it may take, where that is more than the TimeoutStopSec= of the unit.
func StoppingWithin(d time.Duration) string {
	return fmt.Sprintf("%s\nEXTEND_TIMEOUT_USEC=%d", Stopping, d.Microseconds())
}

// firstInherited is SD_LISTEN_FDS_START: descriptors are inherited from here on, behind standard error.
const firstInherited = 3

// Notify sends a state such as Ready, or "STATUS=" and a line for "systemctl status", to the service manager. Several are
// separated by newlines. Without a service manager it does nothing.
func Notify(state string) error { return send(state) }

// Store gives the service manager a duplicate of f to keep, and to pass to the next process of this service under the
// same name: see Inherited. It survives a crash of this process, and ends when the service is stopped rather than
// restarted. The unit's FileDescriptorStoreMax= says how many are kept; systemd drops those above it in silence.
func Store(name string, f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("store %s with the service manager: %w", name, err)
	}
	// Not f.Fd(): that makes the socket blocking, for every duplicate of it, the one that is served on included.
	var sent error
	err = conn.Control(func(fd uintptr) { sent = send("FDSTORE=1\nFDNAME="+escape(name), int(fd)) })
	if err == nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("store %s with the service manager: %w", name, err)
	}
	return nil
}

// Forget has the service manager close what is stored under the name: a listener that the configuration no longer names
// would else take connections that no one accepts.
func Forget(name string) error { return send("FDSTOREREMOVE=1\nFDNAME=" + escape(name)) }

// Inherited takes over the files that the service manager passed to this process, by name: those that an earlier one gave
// to Store, and those of a .socket unit under its FileDescriptorName=. Call it once and early: until then, programs that
// are started inherit the files too. It removes the variables that tell of them, so that those do not take them for theirs.
func Inherited() map[string][]*os.File {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v) // fails for names that are no names only
	}
	n, err := strconv.Atoi(count)
	if err != nil || pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	return files(firstInherited, n, strings.Split(names, ":"))
}

// files opens n descriptors from first on. Those beyond the names are called "unknown", as sd_listen_fds_with_names does.
func files(first, n int, names []string) map[string][]*os.File {
	out := map[string][]*os.File{}
	for i := range n {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = unescape(names[i])
		}
		unix.CloseOnExec(first + i)
		if f := os.NewFile(uintptr(first+i), name); f != nil {
			out[name] = append(out[name], f)
		}
	}
	return out
}

// send writes one datagram to $NOTIFY_SOCKET, with the descriptors attached. It waits while the socket's buffer is full.
func send(state string, fds ...int) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer func() { _ = unix.Close(s) }()
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	to := &unix.SockaddrUnix{Name: path} // "@" begins an abstract name
	for {
		if err = unix.Sendmsg(s, []byte(state), rights, to, unix.MSG_NOSIGNAL); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("notify the service manager at %s: %w", path, err)
	}
	return nil
}

// escape makes any text fit to be a descriptor's name: those are ASCII without controls and without the colon that
// $LISTEN_FDNAMES separates them by, which every address has.
func escape(name string) string { return url.QueryEscape(name) }

// unescape also takes names that are not ours, as they are.
func unescape(name string) string {
	if s, err := url.QueryUnescape(name); err == nil {
		return s
	}
	return name
}
