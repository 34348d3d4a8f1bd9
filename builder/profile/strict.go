package profile

import (
	"encoding"
	"fmt"
	"reflect"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

// maxYAML bounds a profile or Butane file: real ones have a few KiB, and a YAML
// parser should not be offered gigabytes by mistake.
const maxYAML = 4 << 20

// document is a YAML file of which every node's place is known.
type document struct {
	file string
	root *yaml.Node // the top mapping
}

func parseDocument(file string, data []byte) (*document, error) {
	if len(data) > maxYAML {
		return nil, fault.New(fault.Input, "%s: %d bytes is more than a profile can have (%d)", file, len(data), maxYAML)
	}
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		return nil, fault.New(fault.Input, "%s: %s", file, strings.TrimPrefix(err.Error(), "yaml: ")).
			WithMend("mend the YAML; tabs cannot indent, and a text with \": \" in it needs quotes")
	}
	if node.Kind != yaml.DocumentNode || len(node.Content) != 1 || node.Content[0].Kind != yaml.MappingNode {
		return nil, fault.New(fault.Input, "%s:1: this is not a mapping of fields to values", file).
			WithMend("write it as \"field: value\" lines, as docs/formats.md shows")
	}
	return &document{file: file, root: node.Content[0]}, nil
}

// errorAt makes an Input error that stands at a node.
func (d *document) errorAt(n *yaml.Node, field, format string, args ...any) *fault.Error {
	where := fmt.Sprintf("%s:%d:%d", d.file, n.Line, n.Column)
	if field != "" {
		where += ": " + field
	}
	return fault.New(fault.Input, "%s: %s", where, fmt.Sprintf(format, args...))
}

// find follows mapping keys (string) and sequence indices (int) as far as they
// lead, and returns the last node reached: the place to blame.
func (d *document) find(path ...any) *yaml.Node {
	n := d.root
	for _, step := range path {
		next := (*yaml.Node)(nil)
		switch step := step.(type) {
		case string:
			for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == step {
					next = n.Content[i+1]
				}
			}
		case int:
			if n.Kind == yaml.SequenceNode && step < len(n.Content) {
				next = n.Content[step]
			}
		}
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

// decode fills out, a pointer to a struct with yaml tags, and refuses keys that the
// struct does not have, keys given twice and values of the wrong kind.
func (d *document) decode(out any) error {
	return d.decodeValue(d.root, "", reflect.ValueOf(out).Elem())
}

func (d *document) decodeValue(n *yaml.Node, field string, out reflect.Value) error {
	if n.Kind == yaml.AliasNode {
		return d.errorAt(n, field, "aliases are not followed here").WithMend("write the value out")
	}
	if u, ok := out.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if n.Kind != yaml.ScalarNode {
			return d.errorAt(n, field, "one value is wanted, not %s", kindName(n))
		}
		if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			return d.errorAt(n, field, "%v", err)
		}
		return nil
	}
	switch out.Kind() {
	case reflect.Struct:
		return d.decodeStruct(n, field, out)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return d.errorAt(n, field, "a list is wanted, not %s", kindName(n))
		}
		list := reflect.MakeSlice(out.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			if err := d.decodeValue(item, fmt.Sprintf("%s[%d]", field, i), list.Index(i)); err != nil {
				return err
			}
		}
		out.Set(list)
		return nil
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return d.errorAt(n, field, "there is no value").WithMend("give one, or remove the field")
	}
	if err := n.Decode(out.Addr().Interface()); err != nil {
		return d.errorAt(n, field, "%s is wanted, not %s", typeName(out.Type()), kindName(n))
	}
	return nil
}

func (d *document) decodeStruct(n *yaml.Node, field string, out reflect.Value) error {
	if n.Kind != yaml.MappingNode {
		return d.errorAt(n, field, "fields are wanted, not %s", kindName(n))
	}
	fields, names := map[string]int{}, []string{}
	for i := range out.NumField() {
		if name := out.Type().Field(i).Tag.Get("yaml"); name != "" {
			fields[name] = i
			names = append(names, name)
		}
	}
	sort.Strings(names)
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := strings.TrimPrefix(field+"."+key.Value, ".")
		index, ok := fields[key.Value]
		if !ok {
			err := d.errorAt(key, name, "this field is not known")
			if near := Nearest(key.Value, names); near != "" {
				return err.WithMend("did you mean %s?", near)
			}
			return err.WithMend("the fields here are %s", strings.Join(names, ", "))
		}
		if line, twice := seen[key.Value]; twice {
			return d.errorAt(key, name, "given twice, first in line %d", line).WithMend("keep one of them")
		}
		seen[key.Value] = key.Line
		if err := d.decodeValue(value, name, out.Field(index)); err != nil {
			return err
		}
	}
	return nil
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%q", n.Value)
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Map:
		return "a mapping of texts"
	}
	return "a text"
}

// Nearest is the candidate that differs from word by the fewest edits, or "" if
// none is near enough to be what was meant.
func Nearest(word string, candidates []string) string {
	best, bestDistance := "", max(2, len(word)/3)+1
	for _, c := range candidates {
		if d := distance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is Levenshtein's: insertions, deletions and substitutions.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
