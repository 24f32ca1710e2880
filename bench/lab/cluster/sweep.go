package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"sallyport/bench/lab/agent"
	"sallyport/bench/lab/network"
)

// stopWithin bounds how long the owner of a lab is given to remove it, and how long killed processes may take to end.
const stopWithin = 20 * time.Second

// Down removes the lab of that name: asks its owner to end if there is one, then removes every process, namespace,
// link and file that is left, whoever crashed before. A lab that does not exist is no error.
func Down(name string) error {
	if err := network.CheckName(name); err != nil {
		return err
	}
	if err := network.Requirements(); err != nil {
		return err
	}
	if err := stopOwner(name); err != nil {
		return err
	}
	claim, err := claimLab(name)
	if err != nil {
		return err
	}
	return errors.Join(sweep(name), claim.release())
}

// stopOwner ends the process that has the lab up: politely, then not.
func stopOwner(name string) error {
	pid, err := owner(name)
	if err != nil || pid == 0 {
		return err
	}
	if pid == os.Getpid() {
		return fmt.Errorf("take down lab %s: this process has it up: stop it instead", name)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("send %v to process %d, which has lab %s up: %w", signal, pid, name, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		err = poll(ctx, func() error {
			now, err := owner(name)
			if err == nil && now == pid {
				err = fmt.Errorf("process %d still has lab %s up after %v", pid, name, signal)
			}
			return err
		})
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}

// sweep removes all that a lab consists of. The caller holds its claim.
func sweep(name string) error {
	err := errors.Join(killAll(name), network.Remove(name), removeAgents(name), os.RemoveAll(folder(name)))
	parent := os.Remove(labsFolder)
	if errors.Is(parent, os.ErrNotExist) || errors.Is(parent, syscall.ENOTEMPTY) { // it stays for other labs
		parent = nil
	}
	return errors.Join(err, parent)
}

// agentFolder is the folder of one node's agent.
func agentFolder(lab, node string) string { return filepath.Join(folder(lab), "agent", node) }

// removeAgents removes the folders of the nodes' agents, in which memory may be mounted.
func removeAgents(lab string) error {
	folders, err := filepath.Glob(agentFolder(lab, "*"))
	for _, dir := range folders {
		err = errors.Join(err, agent.RemoveDir(dir))
	}
	return err
}

// killAll kills the lab's processes until none is left: one that was just being started may show up late.
func killAll(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	return poll(ctx, func() error {
		pids, err := processes(name)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // an error shows: the process is found again
		}
		return fmt.Errorf("processes %v of lab %s live on after SIGKILL", pids, name)
	})
}

// A namespaceID is what tells one network namespace from another.
type namespaceID struct{ dev, ino uint64 }

func namespaceOf(path string) (id namespaceID, ok bool) {
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		return namespaceID{}, false
	}
	return namespaceID{stat.Dev, stat.Ino}, true
}

// processes finds the lab's processes by their mark in the environment, and those that hide it (a pod chooses its own
// environment) by their network namespace. This process is never among them.
func processes(name string) ([]int, error) {
	names, err := network.Namespaces(name)
	if err != nil {
		return nil, err
	}
	own := map[namespaceID]bool{}
	for _, ns := range names {
		if id, ok := namespaceOf(filepath.Join(network.NamespaceFolder, ns)); ok {
			own[id] = true
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	mark := []byte(network.LabVariable + "=" + name)
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		id, ok := namespaceOf(filepath.Join("/proc", e.Name(), "ns/net"))
		if ok && own[id] || marked(e.Name(), mark) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// marked tells whether the process was started with the variable in its environment.
func marked(pid string, mark []byte) bool {
	environ, err := os.ReadFile(filepath.Join("/proc", pid, "environ"))
	if err != nil {
		return false // it ended meanwhile
	}
	for variable := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.Equal(variable, mark) {
			return true
		}
	}
	return false
}
