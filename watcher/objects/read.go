package objects

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Manifest is what one file, or several together, holds.
type Manifest struct {
	// Objects are the good ones, with the defaults that the API server would have set.
	Objects Cluster
	// Skipped are the objects that Sallyport has no use for.
	Skipped []Skipped
	// Warnings are fields that a kind does not have; the object is used without them.
	Warnings []Error
	// Errors are the objects that cannot be used, and the documents that cannot be read.
	Errors []Error

	// where says in which file and line each object stands, by kind and name.
	where map[string]Position
}

// A Skipped is an object that was read and left out because Sallyport does not use its kind, or the type of a Secret.
type Skipped struct {
	Position
	Object string // "apps/v1 Deployment shop/web"
}

// A Position is a place in a manifest file.
type Position struct {
	File string
	Line int // from 1; 0 if only the file is known
}

// String gives "file:line", or the file alone.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// An Error is an object, or a field of it, that cannot be used, with its place.
type Error struct {
	Position
	Err error
}

// Error gives "file:line: what is wrong".
func (e Error) Error() string { return e.String() + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e Error) Unwrap() error { return e.Err }

// Read reads manifests as kubectl apply -f does: each path is a file, or a folder of which the .yaml, .yml and .json
// files are read in the order of their names, without its subfolders. One broken object hurts no other: the
// Manifest holds both the good objects and the errors. err is set only if a path itself cannot be read.
func Read(paths ...string) (Manifest, error) {
	var all Manifest
	for _, path := range paths {
		files, err := Files(path)
		if err != nil {
			return Manifest{}, err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return Manifest{}, fmt.Errorf("read manifest: %w", err)
			}
			all.Merge(Parse(file, data))
		}
	}
	return all, nil
}

// Files returns the manifest files that path stands for: itself, or those of the folder in the order of their names.
func Files(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var files []string
	for _, e := range entries {
		file := filepath.Join(path, e.Name())
		if isManifest(file) {
			files = append(files, file)
		}
	}
	return files, nil
}

// isManifest says whether a folder's file is to be read. Hidden files are editors' and ConfigMap volumes' own.
func isManifest(file string) bool {
	if strings.HasPrefix(filepath.Base(file), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) {
		return false
	}
	info, err := os.Stat(file)
	return err != nil || info.Mode().IsRegular() // a dangling link is for the reader to complain of
}

// Merge adds what o holds. An object that m has already is an error of o's, and the first one stays.
func (m *Manifest) Merge(o Manifest) {
	m.Skipped = append(m.Skipped, o.Skipped...)
	m.Warnings = append(m.Warnings, o.Warnings...)
	m.Errors = append(m.Errors, o.Errors...)
	for i := range kinds {
		for _, obj := range kinds[i].list(o.Objects) {
			m.add(&kinds[i], obj, o.where[kinds[i].id(obj)])
		}
	}
}

// add takes the object into m, unless m has it already.
func (m *Manifest) add(k *kind, o metav1.Object, at Position) {
	id := k.id(o)
	if first, ok := m.where[id]; ok {
		m.fail(at, fmt.Errorf("%s is defined twice, first at %v: remove one", id, first))
		return
	}
	if m.where == nil {
		m.where = map[string]Position{}
	}
	m.where[id] = at
	k.add(&m.Objects, o)
}

func (m *Manifest) fail(at Position, err error) { m.Errors = append(m.Errors, Error{at, err}) }

// Parse reads one file's content: YAML documents separated by lines "---", or JSON documents one after the other, each an
// object or a List of them.
// file is used in positions only.
func Parse(file string, data []byte) Manifest {
	var m Manifest
	for _, d := range split(data) {
		text, err := d.toJSON()
		if err != nil {
			line, why := YAMLError(err)
			if d.mayBeSecret() {
				why = "check quotes and indentation; a Secret is not quoted here"
			}
			m.fail(Position{file, d.line + min(max(line, 1), d.lines()) - 1}, fmt.Errorf("not YAML: %s", why))
			continue
		}
		m.document(Position{file, d.line}, d, text)
	}
	return m
}

// document reads one YAML document, already in JSON: an object, or a List whose items are objects.
func (m *Manifest) document(at Position, d document, text []byte) {
	if bytes.Equal(text, []byte("null")) {
		return
	}
	var h header
	if err := json.Unmarshal(text, &h); err != nil {
		m.fail(at, errors.New("not a Kubernetes object: apiVersion, kind and metadata are expected at the top"))
		return
	}
	if !h.isList() {
		m.object(at, h, text)
		return
	}
	lines := itemLines(d)
	for i, item := range h.Items {
		pos := at
		if i < len(lines) {
			pos.Line = lines[i]
		}
		m.item(pos, item)
	}
}

// item reads one object of a List.
func (m *Manifest) item(at Position, text []byte) {
	var h header
	if err := json.Unmarshal(text, &h); err != nil {
		m.fail(at, errors.New("not a Kubernetes object: apiVersion, kind and metadata are expected in an item"))
		return
	}
	m.object(at, h, text)
}

// object reads one object, whose header is h.
func (m *Manifest) object(at Position, h header, text []byte) {
	if h.APIVersion == "" || h.Kind == "" {
		m.fail(at, errors.New("not a Kubernetes object: apiVersion or kind is missing"))
		return
	}
	k, err := findKind(h.APIVersion, h.Kind)
	if err != nil {
		m.fail(at, err)
		return
	}
	if k == nil {
		m.skip(at, h)
		return
	}
	o, warnings, err := k.decode(text)
	if k.name == secretKind {
		err = withoutData(err)
	}
	if err == nil {
		err = k.checkMeta(o)
	}
	if err != nil {
		m.fail(at, fmt.Errorf("%s: %w", strings.TrimSpace(h.Kind+" "+h.Metadata.Name), err))
		return
	}
	if s, ok := o.(*corev1.Secret); ok && s.Type != corev1.SecretTypeTLS {
		m.skip(at, h)
		return
	}
	for _, w := range warnings {
		m.Warnings = append(m.Warnings, Error{at, fmt.Errorf("%s: %w: ignored, check its spelling", k.id(o), w)})
	}
	m.add(k, o, at)
}

func (m *Manifest) skip(at Position, h header) {
	object := h.APIVersion + " " + h.Kind + " " + filepath.Join(h.Metadata.Namespace, h.Metadata.Name)
	m.Skipped = append(m.Skipped, Skipped{at, object})
}
