package cloudconfig

import (
	"reflect"
	"sort"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// mapping calls visit for every key of n, merge keys (<<) included. A key
// given twice is reported and its last value counts, as in cloud-init.
func (d *decoder) mapping(n *yaml.Node, path string, visit func(key string, keyNode, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.report(Invalid, n, path, "must be a mapping of keys to values, but is %s", describe(n))
		return
	}
	type entry struct{ key, value *yaml.Node }
	last := map[string]entry{}
	var order []string
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.ShortTag() == "!!merge" {
			merged = append(merged, value)
			continue
		}
		key, ok := d.resolve(key, path)
		if !ok {
			return
		}
		if key.Kind != yaml.ScalarNode {
			d.report(Invalid, key, path, "a key must be a word, but is %s", describe(key))
			continue
		}
		if earlier, twice := last[key.Value]; twice {
			d.report(Invalid, earlier.key, join(path, key.Value), "given again in line %d, which is the one that counts; remove one of them", key.Line)
		} else {
			order = append(order, key.Value)
		}
		last[key.Value] = entry{key, value}
	}
	for _, name := range order {
		visit(name, last[name].key, last[name].value)
	}
	for _, m := range merged {
		d.merge(m, path, func(key string, keyNode, value *yaml.Node) {
			if _, own := last[key]; !own {
				last[key] = entry{keyNode, value}
				visit(key, keyNode, value)
			}
		})
	}
}

// merge visits the keys of a merge key's value: a mapping or a list of them.
func (d *decoder) merge(n *yaml.Node, path string, visit func(string, *yaml.Node, *yaml.Node)) {
	n, ok := d.resolve(n, path)
	if !ok {
		return
	}
	d.depth++
	defer func() { d.depth-- }()
	if n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			d.merge(item, path, visit)
		}
		return
	}
	d.mapping(n, path, visit)
}

// structure decodes a mapping into the fields tagged `cloud:"key[,alias…]"`.
// A field tagged `cloud:"-key"` names a key that is known and not supported;
// its `why` tag says what to do instead.
func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	fields := fieldsOf(v.Type())
	d.mapping(n, path, func(key string, keyNode, value *yaml.Node) {
		at := join(path, key)
		field, known := fields[key]
		switch {
		case !known:
			d.unknown(keyNode, at, key, fields)
		case field.unsupported != "":
			d.report(Unsupported, keyNode, at, "not done by a slipway node: %s", field.unsupported)
		default:
			d.value(value, v.Field(field.index), at)
		}
	})
}

func (d *decoder) unknown(n *yaml.Node, path, key string, fields map[string]field) {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	if near := nearest(key, names); near != "" {
		d.report(Unknown, n, path, "no such cloud-config key; did you mean %q?", near)
		return
	}
	d.report(Unknown, n, path, "no such cloud-config key; see docs/metadata.md for those a node acts on")
}

// field is how a key of a structure is read.
type field struct {
	index       int
	unsupported string // why not, or ""
}

func fieldsOf(t reflect.Type) map[string]field {
	fields := map[string]field{}
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		for _, name := range strings.Split(tag.Get("cloud"), ",") {
			if name != "" {
				fields[name] = field{index: i, unsupported: tag.Get("why")}
			}
		}
	}
	return fields
}

// Keys lists the keys that a structure knows, supported or not; for tests and
// documents.
func keysOf(t reflect.Type) []string {
	var keys []string
	for name := range fieldsOf(t) {
		keys = append(keys, name)
	}
	sort.Strings(keys)
	return keys
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// text accepts any scalar as it is written: a host name such as 10 is still a name.
func (d *decoder) text(n *yaml.Node, path string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.report(Invalid, n, path, "must be text, but is %s", describe(n))
		return "", false
	}
	if strings.ContainsRune(n.Value, 0) {
		d.report(Invalid, n, path, "holds a NUL character")
		return "", false
	}
	if n.ShortTag() == "!!binary" {
		var decoded string
		if err := n.Decode(&decoded); err != nil {
			d.report(Invalid, n, path, "is tagged !!binary but is not base64")
			return "", false
		}
		return decoded, true
	}
	return n.Value, true
}

func (d *decoder) boolean(n *yaml.Node, path string) (value, ok bool) {
	if n.Kind == yaml.ScalarNode {
		switch strings.ToLower(n.Value) {
		case "true", "yes", "on", "1":
			return true, true
		case "false", "no", "off", "0":
			return false, true
		}
	}
	d.report(Invalid, n, path, "must be true or false, but is %s", describe(n))
	return false, false
}

func (d *decoder) integer(n *yaml.Node, path string) (int64, bool) {
	if n.Kind == yaml.ScalarNode {
		if i, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
			return i, true
		}
	}
	d.report(Invalid, n, path, "must be a whole number, but is %s", describe(n))
	return 0, false
}
