package agent

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// PodInitCommand is the first argument with which the agent runs its own program again, in the new namespaces of a
// container. The program hands what follows to [PodInit].
const PodInitCommand = "pod-init"

// PodInit finishes a container's isolation and becomes the container's program. It is called as process 1 of new
// PID, mount and UTS namespaces and returns only with an error. args are those of [PodInitCommand]:
//
//	-netns PATH -hostname NAME [-root PATH -mounts JSON] [-dir PATH] -- PROGRAM [ARG...]
func PodInit(args []string) error {
	flags := flag.NewFlagSet(PodInitCommand, flag.ContinueOnError)
	netNS := flags.String("netns", "", "network namespace to enter")
	hostname := flags.String("hostname", "", "host name to set")
	root := flags.String("root", "", "empty folder, to become a root folder that has the mounts")
	mounts := flags.String("mounts", "", "what to mount")
	dir := flags.String("dir", "", "working directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("pod-init: no program given")
	}
	runtime.LockOSThread() // the network namespace is this thread's, and so the program's after exec
	if err := isolate(*netNS, *hostname); err != nil {
		return fmt.Errorf("pod-init: %w", err)
	}
	if err := settle(*root, *mounts, *dir); err != nil {
		return fmt.Errorf("pod-init: %w", err)
	}
	program := flags.Arg(0)
	return fmt.Errorf("pod-init: exec %s: %w", program, syscall.Exec(program, flags.Args(), os.Environ()))
}

func isolate(netNS, hostname string) error {
	// The launcher set it for the first thread; exec keeps this one's, which Go may have chosen otherwise.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("ask to die with the agent: %w", err)
	}
	ns, err := netns.GetFromPath(netNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", netNS, err)
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netNS, err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", hostname, err)
	}
	// Slave: what the machine unmounts goes away here too, and nothing that the container mounts gets out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// settle mounts the container's volumes and goes to its working directory.
func settle(root, mounts, dir string) error {
	if root != "" {
		var all []bindMount
		if err := json.Unmarshal([]byte(mounts), &all); err != nil {
			return fmt.Errorf("decode mounts: %w", err)
		}
		if err := mountAll(root, all); err != nil {
			return err
		}
	}
	if dir == "" {
		return nil
	}
	return os.Chdir(dir)
}
