package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// tools are the commands that a lab's hosts need, with the Debian package that holds each.
var tools = []struct{ command, pkg string }{
	{"ip", "iproute2"},
	{"unshare", "util-linux"},
	{"mount", "mount"},
	{"hostname", "hostname"},
	{"iptables", "iptables"},
	{"conntrack", "conntrack"},
}

// Requirements says what this machine lacks for a lab, and how to get it; nil if nothing.
func Requirements() error {
	var missing []string
	for _, tool := range tools {
		if _, err := exec.LookPath(tool.command); err != nil {
			missing = append(missing, tool.pkg)
		}
	}
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("the lab makes network namespaces: run it as root"))
	}
	if len(missing) > 0 {
		errs = append(errs, fmt.Errorf("the lab misses commands: apt-get install %s", strings.Join(missing, " ")))
	}
	return errors.Join(errs...)
}
