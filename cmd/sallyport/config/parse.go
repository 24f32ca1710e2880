package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"gopkg.in/yaml.v3"

	"sallyport/watcher/objects"
)

// Parse decodes data over the defaults and checks the result. file is only named in errors, each of which is
// "file:line: key: what to do".
func Parse(file string, data []byte) (Config, error) {
	c := Default()
	p := &problems{file: file}
	p.root = p.document(data)
	if p.root != nil {
		p.decode(p.root, reflect.ValueOf(&c).Elem(), "")
	}
	if p.err() == nil {
		c.check(p)
	}
	return c, p.err()
}

// document returns the file's only mapping, or nil if it is empty or unreadable.
func (p *problems) document(data []byte) *yaml.Node {
	var only *yaml.Node
	for d := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		err := d.Decode(&doc)
		switch {
		case errors.Is(err, io.EOF):
			return only
		case err != nil:
			line, why := objects.YAMLError(err)
			p.at(min(max(line, 1), 1+bytes.Count(bytes.TrimSpace(data), []byte("\n"))), orTop(""), "not YAML: %s", why)
			return nil
		case len(doc.Content) == 0 || doc.Content[0].Tag == "!!null":
		case only != nil:
			p.at(doc.Content[0].Line, orTop(""), "a second document, behind \"---\": put all keys into one")
			return nil
		default:
			only = doc.Content[0]
		}
	}
}

// problems collects what is wrong with one file.
type problems struct {
	file string
	root *yaml.Node
	errs []error
}

func (p *problems) err() error { return errors.Join(p.errs...) }

func (p *problems) at(line int, key, format string, args ...any) {
	where := p.file
	if where == "" {
		where = "command line"
	} else {
		where = fmt.Sprintf("%s:%d", where, line)
	}
	p.errs = append(p.errs, fmt.Errorf("%s: %s: %s", where, key, fmt.Sprintf(format, args...)))
}

// add reports a problem with the value at key, such as "loadBalancer.ipAddressPools[0].addresses[1]".
func (p *problems) add(key, format string, args ...any) {
	p.at(lineOf(p.root, key), key, format, args...)
}

// lineOf follows key through the document as far as it goes: a value that is a default has its parent's line.
func lineOf(n *yaml.Node, key string) int {
	line := 1
	for _, step := range strings.FieldsFunc(key, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		if n = child(n, step); n == nil {
			return line
		}
		line = n.Line
	}
	return line
}

func child(n *yaml.Node, step string) *yaml.Node {
	if n == nil {
		return nil
	}
	for i := range n.Content {
		switch {
		case n.Kind == yaml.MappingNode && i%2 == 0 && n.Content[i].Value == step:
			return n.Content[i+1]
		case n.Kind == yaml.SequenceNode && fmt.Sprint(i) == step:
			return n.Content[i]
		}
	}
	return nil
}

// decode sets v from n. It goes field by field, rather than by one call of yaml's, so that every error has its key and
// line and one error does not hide the next.
func (p *problems) decode(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Tag == "!!null": // "key:" without a value keeps the default
	case v.Kind() == reflect.Struct && !isScalar(v):
		p.decodeMapping(n, v, key)
	case v.Kind() == reflect.Slice:
		p.decodeSequence(n, v, key)
	default:
		p.decodeScalar(n, v, key)
	}
}

// isScalar says that the struct is written as one string (netip.Prefix, netip.AddrPort).
func isScalar(v reflect.Value) bool {
	_, ok := reflect.TypeAssert[interface{ UnmarshalText([]byte) error }](v.Addr())
	return ok
}

func (p *problems) decodeMapping(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.MappingNode {
		p.at(n.Line, orTop(key), "expected keys and values: %s", strings.Join(keysOf(v.Type()), ", "))
		return
	}
	seen := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		k := n.Content[i]
		path := join(key, k.Value)
		if first, again := seen[k.Value]; again {
			p.at(k.Line, path, "given twice, first on line %d: remove one", first)
			continue
		}
		seen[k.Value] = k.Line
		f, ok := fieldOf(v, k.Value)
		if !ok {
			p.at(k.Line, path, "unknown key; %s", advice(k.Value, keysOf(v.Type())))
			continue
		}
		p.decode(n.Content[i+1], f, path)
	}
}

func (p *problems) decodeSequence(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		p.at(n.Line, key, "expected a list: write each value on a line of its own behind \"- \"")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		if item.Tag == "!!null" {
			p.at(item.Line, fmt.Sprintf("%s[%d]", key, i), "empty: give a value or remove it")
			continue
		}
		p.decode(item, out.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
	v.Set(out)
}

func (p *problems) decodeScalar(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.ScalarNode {
		p.at(n.Line, key, "expected one value, %s", expected(v))
		return
	}
	if v.Kind() == reflect.String && n.Tag != "!!str" {
		n.Tag = "!!str" // 1 is a name as good as "1"
	}
	empty := n.Value == "" && v.Kind() == reflect.Struct // UnmarshalText takes "" for the zero address
	if err := n.Decode(v.Addr().Interface()); err != nil || empty {
		p.at(n.Line, key, "%q is not %s", n.Value, expected(v))
	}
}

// expected says in words what a value of v's type looks like.
func expected(v reflect.Value) string {
	switch v.Type().String() {
	case "netip.Prefix":
		return "a CIDR such as 192.0.2.0/24"
	case "netip.Addr":
		return "an IP address"
	case "netip.AddrPort":
		return "an address and port such as 127.0.0.1:9440"
	case "time.Duration":
		return "a duration such as 10s"
	case "bool":
		return "true or false"
	case "uint16":
		return "a number from 0 to 65535"
	case "uint32", "int":
		return "a number"
	default:
		return "a text"
	}
}

func orTop(key string) string {
	if key == "" {
		return "the file"
	}
	return key
}

func join(parent, key string) string {
	if parent == "" {
		return key
	}
	return parent + "." + key
}

// keysOf lists the YAML keys of a struct type, in the order of its fields.
func keysOf(t reflect.Type) []string {
	var out []string
	for field := range t.Fields() {
		if name := field.Tag.Get("yaml"); name != "-" {
			out = append(out, name)
		}
	}
	return out
}

func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag == key && tag != "-" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// advice names the known key that was probably meant, or all of them.
func advice(got string, known []string) string {
	same := func(k string) bool {
		return strings.EqualFold(strings.NewReplacer("-", "", "_", "").Replace(got), k) || levenshtein.ComputeDistance(got, k) <= 2
	}
	if i := slices.IndexFunc(known, same); i >= 0 {
		return fmt.Sprintf("did you mean %s?", known[i])
	}
	return "known here: " + strings.Join(known, ", ")
}
