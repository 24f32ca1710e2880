package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A bindMount shows a file or folder of the node at another path of a container.
type bindMount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// mountAll gives the calling process, which must be in a mount namespace of its own that passes nothing on, a root
// that looks like the machine's and has the mounts too. Nothing is made on the machine: where a target does not exist,
// the folders above it are made anew, of links to what they hold. root is an empty folder.
func mountAll(root string, mounts []bindMount) error {
	mounts, folders, err := resolve(mounts)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount new root: %w", err)
	}
	// Unbindable: the new root lies below the old one and must not become part of itself.
	if err := unix.Mount("", root, "", unix.MS_UNBINDABLE, ""); err != nil {
		return fmt.Errorf("make new root unbindable: %w", err)
	}
	if err := mirror(root, "/", folders); err != nil {
		return fmt.Errorf("make new root: %w", err)
	}
	for _, m := range mounts {
		if err := m.bind(root); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	return enterRoot(root)
}

// resolve sorts the mounts, outer ones first, follows symbolic links in their targets, and returns the folders of the
// machine to which a target adds something.
func resolve(mounts []bindMount) (sorted []bindMount, folders map[string]bool, err error) {
	folders = map[string]bool{"/": true}
	for _, m := range mounts {
		there, missing, err := existing(filepath.Clean("/" + m.Target))
		if err != nil {
			return nil, nil, err
		}
		m.Target = filepath.Join(there, missing)
		for dir := there; missing != "" && !folders[dir]; dir = filepath.Dir(dir) {
			folders[dir] = true
		}
		sorted = append(sorted, m)
	}
	slices.SortStableFunc(sorted, func(a, b bindMount) int { return strings.Compare(a.Target, b.Target) })
	return sorted, folders, nil
}

// existing splits a path into what is on the machine, without symbolic links, and what is not.
func existing(path string) (there, missing string, err error) {
	there, err = filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return there, "", err
	}
	there, missing, err = existing(filepath.Dir(path))
	return there, filepath.Join(missing, filepath.Base(path)), err
}

// mirror makes in to what from holds: folders that are listed as folders, symbolic links as such, everything else by
// bind mounts.
func mirror(to, from string, folders map[string]bool) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		err := mirrorEntry(target, source, e, folders)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has gone meanwhile
			return err
		}
	}
	return nil
}

func mirrorEntry(to, from string, e fs.DirEntry, folders map[string]bool) error {
	if e.Type() == fs.ModeSymlink {
		link, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(link, to)
	}
	if !e.IsDir() {
		return bind(from, to, false)
	}
	info, err := e.Info()
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	if !folders[from] {
		return bind(from, to, true)
	}
	if err := os.Chmod(to, info.Mode()); err != nil {
		return err
	}
	return mirror(to, from, folders)
}

// bind mounts m in the new root.
func (m bindMount) bind(root string) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	target := filepath.Join(root, m.Target)
	if err := bind(m.Source, target, info.IsDir()); err != nil {
		return err
	}
	if !m.ReadOnly {
		return nil
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// bind shows source, with what is mounted in it, at target, which is made if it does not exist.
func bind(source, target string, isDir bool) error {
	folder := target
	if !isDir {
		folder = filepath.Dir(target)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if !isDir {
		file, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return err
		}
		file.Close()
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &fs.PathError{Op: "bind mount", Path: source, Err: err}
	}
	return nil
}

// enterRoot makes root the root of the mount namespace, so that whoever enters it later sees the same.
func enterRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // the old root is now on top of the new one
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave old root: %w", err)
	}
	return os.Chdir("/")
}
