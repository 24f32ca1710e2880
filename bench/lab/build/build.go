// Package build makes the programs that the lab runs, from source, once for each version.
//
// The programs come from the Go modules of Kubernetes, etcd and the Gateway API. Each is required by a nested module
// of its own beside this file (kubernetes, etcd, echobasic), as a tool, so that the product's go.mod knows nothing of
// them. The binaries stay in the user's cache folder, keyed by what decides their content.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A module is one nested module and what is built from it.
type module struct {
	folder   string   // beside this file
	pin      string   // the module in its go.mod whose version names the build
	programs []string // the binaries that its tools give
	rename   map[string]string
	ldflags  func(version string) string
}

var modules = []module{
	{
		folder:   "kubernetes",
		pin:      "k8s.io/kubernetes",
		programs: []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl", "agnhost"},
		ldflags:  kubernetesVersion,
	},
	{
		folder:   "etcd",
		pin:      "go.etcd.io/etcd/server/v3",
		programs: []string{"etcd"},
		rename:   map[string]string{"server": "etcd"}, // go build names a binary by the element before /v3
	},
	{
		folder:   "echobasic",
		pin:      "sigs.k8s.io/gateway-api/conformance",
		programs: []string{"echo-basic"},
	},
}

// Programs is where each program of the lab is: program name -> path of its binary.
type Programs map[string]string

// Images lists the programs among p that pods may run, by the bare name of the image that holds them upstream.
func (p Programs) Images() map[string]string {
	images := map[string]string{}
	for _, name := range []string{"agnhost", "echo-basic"} {
		images[name] = p[name]
	}
	return images
}

// All returns the lab's programs and builds those that the cache folder does not hold yet, which takes minutes.
// It needs the go command and must be called with the working directory inside the sallyport
// source tree. Builders that run at the same time wait for each other.
func All(ctx context.Context, log *slog.Logger) (Programs, error) {
	source, err := sourceFolder(ctx)
	if err != nil {
		return nil, err
	}
	cache, err := cacheFolder()
	if err != nil {
		return nil, err
	}
	all := Programs{}
	for _, m := range modules {
		bin, err := m.ensure(ctx, filepath.Join(source, m.folder), cache, log)
		if err != nil {
			return nil, err
		}
		for _, name := range m.programs {
			all[name] = filepath.Join(bin, name)
		}
	}
	return all, nil
}

// LabCommand is the package of the lab's own program.
const LabCommand = "sallyport/bench/lab"

// Command builds a command of this module, named by its package's path, to the path out.
//
// It also looks into every folder that the command is made of. That tells go test what a test depends on that runs the
// command without importing it: the test's result is not taken from the cache when a file there has changed.
func Command(ctx context.Context, pkg, out string) error {
	folders, err := sources(ctx, pkg)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if _, err := os.ReadDir(folder); err != nil {
			return fmt.Errorf("look at the source of %s: %w", pkg, err)
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", out, pkg)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// sourcesFormat prints, for a package of the main module, its folder, those of the files it embeds, and the module's.
const sourcesFormat = `{{if .Module}}{{if .Module.Main}}{{$dir := .Dir}}{{$dir}}/.
{{range .EmbedFiles}}{{$dir}}/{{.}}
{{end}}{{.Module.GoMod}}
{{end}}{{end}}`

// sources lists the folders of this module whose files make up the command.
func sources(ctx context.Context, pkg string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-deps", "-f", sourcesFormat, pkg).Output()
	if err != nil {
		return nil, fmt.Errorf("list the source of %s (run this inside the sallyport source tree): %w", pkg, err)
	}
	folders := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if file := strings.TrimSpace(line); file != "" {
			folders[filepath.Dir(file)] = true
		}
	}
	return slices.Sorted(maps.Keys(folders)), nil
}

// sourceFolder is where this package's source, and with it the nested modules, lies. They cannot be embedded:
// the patterns of go:embed may not cross into another module.
func sourceFolder(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "sallyport/bench/lab/build").Output()
	if err != nil {
		return "", fmt.Errorf("find the source of the lab's programs (run this inside the sallyport source tree): %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func cacheFolder() (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder: %w", err)
	}
	dir := filepath.Join(user, "sallyport", "lab")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the lab's cache folder: %w", err)
	}
	return dir, nil
}

// ensure returns the folder with m's binaries and builds them first if it does not exist.
func (m module) ensure(ctx context.Context, source, cache string, log *slog.Logger) (string, error) {
	key, version, err := m.key(source)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(cache, key, "bin")
	if exists(bin) {
		return bin, nil
	}
	unlock, err := lock(filepath.Join(cache, key+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(bin) { // another builder was faster
		return bin, nil
	}
	log.InfoContext(ctx, "building programs, once for each version", "programs", m.programs, "version", version)
	return bin, m.build(ctx, source, version, bin)
}

// key names a build by what decides its content.
func (m module) key(source string) (key, version string, err error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", "", fmt.Errorf("read the pins of the lab's programs: %w", err)
		}
		hash.Write(text)
		if name == "go.mod" {
			version = pinned(string(text), m.pin)
		}
	}
	if version == "" {
		return "", "", fmt.Errorf("%s/go.mod does not require %s", source, m.pin)
	}
	return m.folder + "-" + version + "-" + hex.EncodeToString(hash.Sum(nil)[:4]), version, nil
}

// pinned finds the version at which the text of a go.mod requires the module path.
func pinned(gomod, path string) string {
	for line := range strings.Lines(gomod) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && fields[0] == path && strings.HasPrefix(fields[1], "v") {
			return fields[1]
		}
	}
	return ""
}

// build compiles into a folder beside bin and renames it at the end, so that bin is complete whenever it exists.
// What the compiler says is kept in build.log beside bin.
func (m module) build(ctx context.Context, source, version, bin string) error {
	home := filepath.Dir(bin)
	unfinished := bin + ".unfinished"
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(home, "build.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.CommandContext(ctx, "go", m.arguments(version, unfinished)...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the lab's programs in %s: %w (output in %s)", source, err, logFile.Name())
	}
	for from, to := range m.rename {
		if err := os.Rename(filepath.Join(unfinished, from), filepath.Join(unfinished, to)); err != nil {
			return err
		}
	}
	return os.Rename(unfinished, bin)
}

func (m module) arguments(version, folder string) []string {
	flags := "-s -w"
	if m.ldflags != nil {
		flags += " " + m.ldflags(version)
	}
	return []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", folder + string(filepath.Separator), "tool"}
}

// kubernetesVersion gives the linker flags without which the programs report v0.0.0-master: component-base is what
// they say of themselves, client-go what they send as User-Agent.
func kubernetesVersion(version string) string {
	number := strings.Split(strings.TrimPrefix(version, "v"), ".")
	var flags []string
	for _, in := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags,
			"-X "+in+".gitVersion="+version,
			"-X "+in+".gitMajor="+number[0],
			"-X "+in+".gitMinor="+number[1],
			"-X "+in+".gitTreeState=clean")
	}
	return strings.Join(flags, " ")
}

// lock takes the file lock at path, waiting for its holder, and returns what gives it back. The kernel gives it back
// also when the process dies.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open build lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("take build lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
