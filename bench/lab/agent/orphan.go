package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"sallyport/bench/lab/network"
)

// removeOrphans removes what an agent that was killed left of this node's pods: processes, network namespaces and
// folders. The directories of the pods say which pods are this node's.
func removeOrphans(dir, prefix string) error {
	entries, err := os.ReadDir(filepath.Join(dir, podsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for pods of an earlier agent: %w", err)
	}
	for _, e := range entries {
		uid := types.UID(e.Name()[strings.LastIndexByte(e.Name(), '_')+1:])
		name := podNetNS(prefix, uid)
		err := errors.Join(killInNetNS(filepath.Join(network.NamespaceFolder, name)), network.DeleteNamespace(name), removePodDir(filepath.Join(dir, podsDir, e.Name())))
		if err != nil {
			return fmt.Errorf("remove pod %s of an earlier agent: %w", e.Name(), err)
		}
	}
	return nil
}

// killInNetNS kills the processes in the network namespace at path. PDEATHSIG has done so already, unless the kernel
// is still at it.
func killInNetNS(path string) error {
	var ns unix.Stat_t
	if err := unix.Stat(path, &ns); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range processes {
		var its unix.Stat_t
		if unix.Stat(filepath.Join(dir, "ns/net"), &its) != nil || its.Ino != ns.Ino || its.Dev != ns.Dev {
			continue // elsewhere, or gone meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}
