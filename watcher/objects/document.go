package objects

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	yamlv3 "gopkg.in/yaml.v3"
	"sigs.k8s.io/yaml"
)

// A document is one of a file's YAML documents.
type document struct {
	line int // of its first line that is neither blank nor a comment, from 1
	text []byte
	json bool // the text is a JSON value
}

// toJSON converts the document. JSON stays as it is, which makes what Write has written twenty times as fast to read.
func (d document) toJSON() ([]byte, error) {
	if d.json {
		return d.text, nil
	}
	return yaml.YAMLToJSONStrict(d.text)
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
	if json.Valid(d.text) {
		d.json = true
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
		all = append(all, document{line, value, true})
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
