package agent

import (
	"fmt"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// defaultArgs holds the CMD of those images whose program does something else without arguments.
var defaultArgs = map[string][]string{
	"agnhost": {"pause"},
}

// ImageName returns the bare name of an image reference: what is left without registry, repository path, tag and
// digest. registry.k8s.io/e2e-test-images/agnhost:2.59 is agnhost.
func ImageName(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	name, _, _ := strings.Cut(path.Base(ref), ":")
	return name
}

// imageTable maps bare image names to programs on this machine.
type imageTable map[string]string

// program returns the path of the program that plays the image.
func (t imageTable) program(ref string) (string, error) {
	if bin, ok := t[ImageName(ref)]; ok {
		return bin, nil
	}
	return "", fmt.Errorf("image %q is not in the lab's image table, which knows %s: add it with --image %s=BINARY",
		ref, strings.Join(slices.Sorted(maps.Keys(t)), ", "), ImageName(ref))
}

// resolve finds the program for the first word of a command run in the image: the image's own program under any
// path (/agnhost, agnhost), or a program of this machine, which stands in for the image's file system.
func (t imageTable) resolve(ref, word string) (string, error) {
	bin, err := t.program(ref)
	if err != nil {
		return "", err
	}
	if base := path.Base(word); base == ImageName(ref) || base == path.Base(bin) {
		return bin, nil
	}
	found, err := exec.LookPath(word)
	if err != nil {
		return "", fmt.Errorf("command %q: neither the program of image %q nor one of this machine: %w", word, ref, err)
	}
	return found, nil
}

// commandLine returns the program and arguments of a container: command and args override the image's ENTRYPOINT
// and CMD as the Container API describes, and $(NAME) is expanded from env.
func (t imageTable) commandLine(c *corev1.Container, env map[string]string) ([]string, error) {
	args := expandAll(c.Args, env)
	if len(c.Command) == 0 {
		if len(args) == 0 {
			args = defaultArgs[ImageName(c.Image)]
		}
		bin, err := t.program(c.Image)
		return append([]string{bin}, args...), err
	}
	command := expandAll(c.Command, env)
	bin, err := t.resolve(c.Image, command[0])
	return slices.Concat([]string{bin}, command[1:], args), err
}
