package agent

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A payload is the content of a volume: files by their path in it.
type payload map[string]payloadFile

type payloadFile struct {
	data []byte
	mode fs.FileMode
}

// Names in a volume's folder, kubelet's own: ..data links to the folder with the files, and what a container reads links
// to ..data/NAME. So all files change at one moment, when ..data is replaced.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
	dataFolder  = "..version.*"
)

var errDiffers = errors.New("a file differs")

// write makes folder hold p, all of it at one moment. What is there already is left alone.
func (p payload) write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	before, err := os.Readlink(filepath.Join(folder, dataLink))
	if err == nil && p.isIn(filepath.Join(folder, before)) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh, err := p.writeFiles(folder)
	if err != nil {
		return err
	}
	link := filepath.Join(folder, newDataLink)
	if err := errors.Join(os.Symlink(filepath.Base(fresh), link), os.Rename(link, filepath.Join(folder, dataLink))); err != nil {
		return err
	}
	if err := p.link(folder); err != nil || before == "" {
		return err
	}
	return os.RemoveAll(filepath.Join(folder, before))
}

// isIn says whether the files below folder are p.
func (p payload) isIn(folder string) bool {
	found := 0
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if want, ok := p[name]; !ok || !bytes.Equal(data, want.data) || info.Mode().Perm() != want.mode {
			return errDiffers
		}
		found++
		return nil
	})
	return err == nil && found == len(p)
}

// writeFiles writes p to a new folder inside folder.
func (p payload) writeFiles(folder string) (string, error) {
	fresh, err := os.MkdirTemp(folder, dataFolder)
	if err != nil {
		return "", err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return "", err
	}
	for name, file := range p {
		path := filepath.Join(fresh, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, file.data, file.mode); err != nil {
			return "", err
		}
		if err := os.Chmod(path, file.mode); err != nil { // whatever the umask is
			return "", err
		}
	}
	return fresh, nil
}

// link makes a link to ..data for each name at the top of p, and removes those of names that are no longer in it.
func (p payload) link(folder string) error {
	top := map[string]bool{}
	for name := range p {
		first, _, _ := strings.Cut(name, "/")
		top[first] = true
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink || e.Name() == dataLink {
			continue
		}
		if top[e.Name()] {
			delete(top, e.Name())
			continue
		}
		if err := os.Remove(filepath.Join(folder, e.Name())); err != nil {
			return err
		}
	}
	for name := range top {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}
