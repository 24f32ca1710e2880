package objects

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	yamlv3 "gopkg.in/yaml.v3"
	"sigs.k8s.io/yaml"
)

// A Manifest is what one file, or several together, holds.
type Manifest struct {
	// Objects are the good ones, with the defaults that the API server would have set.
	Objects Cluster
	// Skipped are the objects of kinds that Sallyport does not use.
	Skipped []Skipped
	// Warnings are fields that a kind does not have; the object is used without them.
	Warnings []Error
	// Errors are the objects that cannot be used, and the documents that cannot be read.
	Errors []Error

	// where says in which file and line each object stands, by kind and name.
	where map[string]Position
}

// A Skipped is an object that was read and left out because Sallyport does not use its kind.
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
		at := Position{file, d.line}
		text, err := yaml.YAMLToJSONStrict(d.text)
		if err != nil {
			line, why := YAMLError(err)
			m.fail(Position{file, d.line + min(max(line, 1), d.lines()) - 1}, fmt.Errorf("not YAML: %s", why))
			continue
		}
		m.document(at, d, text)
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
		m.Skipped = append(m.Skipped, Skipped{at, h.APIVersion + " " + h.Kind + " " + filepath.Join(h.Metadata.Namespace, h.Metadata.Name)})
		return
	}
	o, warnings, err := k.decode(text)
	if err == nil {
		err = k.checkMeta(o)
	}
	if err != nil {
		m.fail(at, fmt.Errorf("%s: %w", strings.TrimSpace(h.Kind+" "+h.Metadata.Name), err))
		return
	}
	for _, w := range warnings {
		m.Warnings = append(m.Warnings, Error{at, fmt.Errorf("%s: %w: ignored, check its spelling", k.id(o), w)})
	}
	m.add(k, o, at)
}

// A document is one of a file's YAML documents.
type document struct {
	line int // of its first line that is neither blank nor a comment, from 1
	text []byte
}

// lines counts the document's lines.
func (d document) lines() int {
	return 1 + bytes.Count(bytes.TrimSuffix(d.text, []byte("\n")), []byte("\n"))
}

// split cuts data at the lines that start with "---" or are "...", and JSON after each value. A document without content is
// left out.
func split(data []byte) []document {
	var docs []document
	var cur document
	start := 1
	flush := func() {
		if cur.line > 0 {
			docs = append(docs, cur.values()...)
		}
		cur = document{}
	}
	for line := range bytes.Lines(data) {
		text := bytes.TrimSpace(line)
		switch {
		case bytes.HasPrefix(line, []byte("...")) && len(text) == 3:
			flush()
		case bytes.HasPrefix(line, []byte("---")) && (len(text) == 3 || text[3] == ' ' || text[3] == '\t' || text[3] == '#'):
			flush()
			line = bytes.TrimPrefix(line, []byte("---"))
			fallthrough
		default:
			content := bytes.TrimSpace(line)
			if cur.line == 0 && len(content) > 0 && content[0] != '#' && content[0] != '%' {
				cur.line = start
			}
			if cur.line > 0 {
				cur.text = append(cur.text, line...)
			}
		}
		start++
	}
	flush()
	return docs
}

// values are the JSON values that the document is made of, or itself if it is something else.
func (d document) values() []document {
	if !bytes.HasPrefix(bytes.TrimSpace(d.text), []byte("{")) {
		return []document{d}
	}
	var all []document
	decoder := json.NewDecoder(bytes.NewReader(d.text))
	for line, end := d.line, 0; ; end = int(decoder.InputOffset()) {
		var value json.RawMessage
		err := decoder.Decode(&value)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			return []document{d} // YAML in braces, or broken: the YAML parser tells
		}
		start := int(decoder.InputOffset()) - len(value)
		line += bytes.Count(d.text[end:start], []byte("\n"))
		all = append(all, document{line, value})
		line += bytes.Count(value, []byte("\n"))
	}
}

// itemLines returns the line in the file of each item of a List.
func itemLines(d document) []int {
	var list struct {
		Items []yamlv3.Node `yaml:"items"`
	}
	if yamlv3.Unmarshal(d.text, &list) != nil {
		return nil
	}
	var lines []int
	for _, item := range list.Items {
		lines = append(lines, d.line+item.Line-1)
	}
	return lines
}
