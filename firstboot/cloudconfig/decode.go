package cloudconfig

import (
	"fmt"
	"reflect"

	"gopkg.in/yaml.v3"
)

// Limits on a document from outside.
const (
	maxDepth = 64      // nesting, aliases followed
	maxNodes = 200_000 // values visited, so that aliases cannot multiply without end
)

// decoder walks a YAML tree into Go values. Unlike yaml.v3's own it goes on
// after a mistake, knows the line of each, reads YAML 1.1's yes and no as
// cloud-init does, and reports keys that nobody asked for.
type decoder struct {
	file     string
	findings []Finding
	visited  int
	depth    int
}

// custom is a value that may be written in several forms.
type custom interface {
	decodeCloud(d *decoder, n *yaml.Node, path string)
}

func (d *decoder) report(kind Kind, n *yaml.Node, path, format string, args ...any) {
	const most = 200
	switch {
	case len(d.findings) > most:
		return
	case len(d.findings) == most:
		kind, path, format, args = Invalid, "", "more than %d findings; the rest is not listed", []any{most}
	}
	line := 0
	if n != nil {
		line = n.Line
	}
	d.findings = append(d.findings, Finding{Kind: kind, File: d.file, Line: line, Key: path, Message: fmt.Sprintf(format, args...)})
}

// resolve follows aliases and reports whether n may be visited at all.
func (d *decoder) resolve(n *yaml.Node, path string) (*yaml.Node, bool) {
	for hops := 0; n.Kind == yaml.AliasNode; hops++ {
		if n.Alias == nil || hops > maxDepth {
			d.report(Invalid, n, path, "an alias that leads nowhere")
			return nil, false
		}
		n = n.Alias
	}
	d.visited++
	if d.visited > maxNodes || d.depth > maxDepth {
		d.report(Invalid, n, path, "nested or repeated too often; at most %d levels and %d values are read", maxDepth, maxNodes)
		return nil, false
	}
	return n, true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe names what n is, for messages; never its value.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!float":
		return "a decimal number"
	case "!!null":
		return "empty"
	}
	return "text"
}

// value decodes n into v. A null leaves v as it is.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	n, ok := d.resolve(n, path)
	if !ok || isNull(n) {
		return
	}
	d.depth++
	defer func() { d.depth-- }()
	if v.CanAddr() {
		if c, ok := v.Addr().Interface().(custom); ok {
			c.decodeCloud(d, n, path)
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		fresh := reflect.New(v.Type().Elem())
		before := len(d.findings)
		d.value(n, fresh.Elem(), path)
		if len(d.findings) == before || !fresh.Elem().IsZero() {
			v.Set(fresh)
		}
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.String:
		if s, ok := d.text(n, path); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		if b, ok := d.boolean(n, path); ok {
			v.SetBool(b)
		}
	case reflect.Int:
		if i, ok := d.integer(n, path); ok {
			v.SetInt(i)
		}
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.report(Invalid, n, path, "must be a list, but is %s", describe(n))
			return
		}
		for i, item := range n.Content {
			fresh := reflect.New(v.Type().Elem()).Elem()
			before := len(d.findings)
			d.value(item, fresh, fmt.Sprintf("%s[%d]", path, i))
			if len(d.findings) > before && fresh.IsZero() {
				continue // reported; an empty item in its place would mean something else
			}
			v.Set(reflect.Append(v, fresh))
		}
	case reflect.Map:
		d.mapping(n, path, func(key string, _, item *yaml.Node) {
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			fresh := reflect.New(v.Type().Elem()).Elem()
			d.value(item, fresh, path+"."+key)
			v.SetMapIndex(reflect.ValueOf(key), fresh)
		})
	default:
		d.report(Invalid, n, path, "this agent has no reading for %s", v.Type())
	}
}
