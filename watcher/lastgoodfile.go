package watcher

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/objects"
)

// lastGoodFile is the path of a last-good file.
type lastGoodFile string

// written is when the file was written, zero if there is none.
func (f lastGoodFile) written() time.Time {
	info, err := os.Stat(string(f))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// read returns what the file holds, or nil if there is nothing in it that can be used. An object that is broken is left
// out: without the file its neighbours would not be served either.
func (f lastGoodFile) read(o Options) *objects.Cluster {
	data, err := os.ReadFile(string(f))
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			o.Log.Error("last-good file cannot be read", "err", err)
		}
		return nil
	}
	m := objects.Parse(string(f), data)
	for _, e := range m.Errors {
		o.Log.Error("object of the last-good file not used", "at", e.String(), "err", e.Err)
	}
	if len(m.Objects.Namespaces) == 0 && len(m.Objects.Services) == 0 {
		o.Log.Error("last-good file has no objects", "file", string(f))
		return nil
	}
	m.Objects.Name, m.Objects.Stale = o.Cluster, true
	return &m.Objects
}

// clusterUID returns the UID of the namespace kube-system in the file, or "" if there is none. Namespaces are the first
// objects that objects.Write writes: what follows is not read, which at start would keep everything waiting.
func (f lastGoodFile) clusterUID() (string, error) {
	file, err := os.Open(string(f))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	head, err := namespaceLines(bufio.NewReader(file))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", f, err)
	}
	for _, n := range objects.Parse(string(f), head).Objects.Namespaces {
		if n.Name == metav1.NamespaceSystem {
			return string(n.UID), nil
		}
	}
	return "", nil
}

// namespaceLines returns the lines before the first that holds another object than a Namespace.
func namespaceLines(r *bufio.Reader) (head []byte, err error) {
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if err != nil || bytes.HasPrefix(line, []byte("{")) && !bytes.Contains(line, []byte(`"kind":"Namespace"`)) {
			return head, nil
		}
		head = append(head, line...)
	}
}

// write replaces the file. It is whole at all times: what is written first has another name, and is on the disk before
// it gets this one.
func (f lastGoodFile) write(c objects.Cluster) error {
	folder := filepath.Dir(string(f))
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	temporary := string(f) + ".tmp" // always the same, so that a crash leaves one at most
	if err := writeSynced(temporary, c); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	if err := os.Rename(temporary, string(f)); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	return syncFolder(folder)
}

// removeIfThere removes a file that may not be there.
func removeIfThere(file string) error {
	if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// writeSynced writes a new file, for our eyes only, and waits for the disk.
func writeSynced(name string, c objects.Cluster) error {
	if err := removeIfThere(name); err != nil { // it may have another mode
		return err
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(objects.Write(file, c), file.Sync())
	return errors.Join(err, file.Close())
}

// syncFolder waits until a renaming is on the disk.
func syncFolder(name string) error {
	folder, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
