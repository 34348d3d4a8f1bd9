package topology

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/builder/profile"
)

// Bounds: of each list and each set of names, of a key, and of what a message
// quotes.
const (
	maxItems = 1000
	maxKey   = 253
	maxQuote = 80
	maxField = 200
)

// reader walks a YAML document and collects what is wrong with it. It knows the
// line of every field that it has met.
type reader struct {
	file  string
	lines map[string]int
	found Mistakes
}

// wrong notes a mistake at a field.
func (r *reader) wrong(field, mend, format string, args ...any) {
	r.found = append(r.found, Mistake{File: r.file, Line: r.line(field), Field: clip(field, maxField), Text: fmt.Sprintf(format, args...), Mend: mend})
}

// doubt notes a warning at a field.
func (r *reader) doubt(field, mend, format string, args ...any) {
	r.wrong(field, mend, format, args...)
	r.found[len(r.found)-1].Warning = true
}

// line is where a field stands, or, if it is not in the file, what it would be in.
func (r *reader) line(field string) int {
	for field != "" {
		if n := r.lines[field]; n > 0 {
			return n
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return max(1, r.lines[""])
}

// value is a node of the document and its place.
type value struct {
	*reader
	node  *yaml.Node
	field string
}

func (v value) fail(mend, format string, args ...any) { v.wrong(v.field, mend, format, args...) }

// kind names what a value is, for messages.
func (v value) kind() string {
	switch v.node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch v.node.ShortTag() {
	case "!!null":
		return "empty"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!str":
		return "text"
	}
	return "of type " + short(v.node.ShortTag())
}

func (v value) empty() bool { return v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!null" }

// is reports whether a value has the kind that its field wants.
func (v value) is(kind yaml.Kind, want, mend string) bool {
	if v.node.Kind == yaml.AliasNode {
		v.fail("write the value out", "anchors and aliases are not used in this file")
		return false
	}
	if v.node.Kind != kind {
		v.fail(mend, "is %s, not %s", v.kind(), want)
		return false
	}
	return true
}

// member is a key with its value.
type member struct {
	name string
	value
}

// members are the keys of a mapping, in order. A key given twice is a mistake.
func (v value) members(mend string) []member {
	if v.empty() || !v.is(yaml.MappingNode, "a mapping", mend) {
		return nil
	}
	var out []member
	seen := map[string]int{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key, content := v.node.Content[i], v.node.Content[i+1]
		at := member{name: key.Value, value: value{reader: v.reader, node: content, field: join(v.field, key.Value)}}
		switch first := seen[key.Value]; {
		case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge":
			v.fail("write plain \"key: value\" lines", "line %d has a key that is no plain word", key.Line)
		case len(key.Value) > maxKey:
			v.fail("no name here is that long", "line %d has a key of %d bytes", key.Line, len(key.Value))
		case len(out) == maxItems:
			v.fail("describe it as several clusters", "has more than %d keys", maxItems)
			return out
		case first > 0:
			v.found = append(v.found, Mistake{File: v.file, Line: key.Line, Field: clip(at.field, maxField),
				Text: fmt.Sprintf("is given twice, first on line %d", first), Mend: "keep one of them"})
		default:
			seen[key.Value] = key.Line
			v.lines[at.field] = key.Line
			out = append(out, at)
		}
	}
	return out
}

// object is a mapping whose keys are known.
type object struct {
	value
	fields map[string]value
}

// object reads a mapping with the keys of a kind; others are mistakes.
func (v value) object(kind string) object {
	o := object{value: v, fields: map[string]value{}}
	known := keys[kind]
	for _, m := range v.members("write the fields " + strings.Join(known, ", ") + ", each on a line of its own") {
		if !slices.Contains(known, m.name) {
			mend := "the fields here are " + strings.Join(known, ", ")
			if near := nearest(m.name, known); near != "" {
				mend = fmt.Sprintf("did you mean %q?", near)
			}
			m.fail(mend, "there is no such field")
			continue
		}
		o.fields[m.name] = m.value
	}
	return o
}

// get returns a field that is there and not empty.
func (o object) get(key string) (value, bool) {
	v, ok := o.fields[key]
	return v, ok && !v.empty()
}

// need is get for a field that must be there.
func (o object) need(key, mend string) (value, bool) {
	v, ok := o.get(key)
	if !ok {
		o.wrong(join(o.field, key), mend, "is missing")
	}
	return v, ok
}

// list are the items of a list.
func (v value) list() []value {
	if v.empty() || !v.is(yaml.SequenceNode, "a list", "write each item on a line of its own, after \"- \"") {
		return nil
	}
	if len(v.node.Content) > maxItems {
		v.fail("describe it as several clusters", "has %d items, more than %d", len(v.node.Content), maxItems)
		return nil
	}
	out := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		out[i] = value{reader: v.reader, node: n, field: v.field + "[" + strconv.Itoa(i) + "]"}
		v.lines[out[i].field] = n.Line
	}
	return out
}

// text reads a text.
func (v value) text() (string, bool) {
	if !v.is(yaml.ScalarNode, "text", "write one text") {
		return "", false
	}
	if v.node.ShortTag() != "!!str" {
		v.fail("put it in quotes if it is meant as text", "is %s, not text", v.kind())
		return "", false
	}
	return v.node.Value, true
}

// number reads a whole number within bounds.
func (v value) number(low, high int, mend string) (int, bool) {
	if !v.is(yaml.ScalarNode, "a number", mend) {
		return 0, false
	}
	n, err := strconv.Atoi(v.node.Value)
	if err != nil || v.node.ShortTag() != "!!int" {
		v.fail(mend, "%q is no whole number", short(v.node.Value))
		return 0, false
	}
	if n < low || n > high {
		v.fail(mend, "%d is not between %d and %d", n, low, high)
		return 0, false
	}
	return n, true
}

// truth reads true or false.
func (v value) truth() bool {
	if !v.is(yaml.ScalarNode, "true or false", "write true or false") {
		return false
	}
	if v.node.ShortTag() != "!!bool" {
		v.fail("write true or false", "%q is neither true nor false", short(v.node.Value))
	}
	return strings.EqualFold(v.node.Value, "true")
}

// size reads a number of bytes with its unit.
func (v value) size(low, high profile.Size) (profile.Size, bool) {
	text, ok := v.text()
	if !ok {
		return 0, false
	}
	s, err := profile.ParseSize(text)
	if err != nil || len(text) > 32 {
		v.fail("write a whole number and a unit, such as 4GiB or 768MiB", "%q is no size", short(text))
		return 0, false
	}
	if s < low {
		v.fail("give at least "+low.String(), "%s is too little", text)
		return 0, false
	}
	if s > high {
		v.fail("give at most "+high.String(), "%s is too much", text)
		return 0, false
	}
	return s, true
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

// short keeps what a message quotes within a line, and free of control characters.
func short(text string) string { return clip(text, maxQuote) }

func clip(text string, limit int) string {
	if len(text) > 4*limit {
		text = text[:4*limit]
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > limit {
		return string(runes[:limit-3]) + "..."
	}
	return text
}

// nearest is the candidate that a word was probably meant to be, or "".
func nearest(word string, candidates []string) string {
	if len(word) > 64 {
		return ""
	}
	return profile.Nearest(word, candidates)
}
