package topology

import (
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Without is the text of a topology's file without one of its nodes, and what it
// amounts to. Only the node's own lines go: everything else keeps its layout and its
// comments, one above the node among them. What comes out is read again, and refused
// unless it is the same topology without that node. A file in which that cannot be
// done is for its author to edit.
func Without(file string, data []byte, name string) ([]byte, *Topology, error) {
	before, mistakes := Parse(file, data)
	if err := mistakes.Err(); err != nil {
		return nil, nil, err
	}
	if _, ok := before.Node(name); !ok {
		return nil, nil, fault.New(fault.Usage, "%s has no node %q", file, name)
	}
	text, ok := cut(data, name)
	if !ok {
		return nil, nil, byHand(file, name)
	}
	after, mistakes := Parse(file, text)
	if err := mistakes.Err(); err != nil {
		return nil, nil, fault.New(fault.Input, "without %s, %s would not be a cluster: %w", name, file, err).
			WithMend("change the file so that it is one without the node, then run the same command again")
	}
	want := *before
	want.Nodes = slices.DeleteFunc(slices.Clone(want.Nodes), func(n Node) bool { return n.Name == name })
	got := *after
	want.Warnings, got.Warnings = nil, nil
	if !reflect.DeepEqual(want, got) {
		return nil, nil, byHand(file, name)
	}
	return text, after, nil
}

func byHand(file, name string) error {
	return fault.New(fault.Input, "%s is written in a way in which %s cannot be taken out without touching the rest", file, name).
		WithMend("take the node out of the file by hand, then run the same command again")
}

// cut takes the lines of a node out of the list "nodes", which stands in block style
// (YAML 1.2.2, 8.2.1).
func cut(data []byte, name string) ([]byte, bool) {
	var document yaml.Node
	if yaml.Unmarshal(data, &document) != nil || len(document.Content) != 1 || document.Content[0].Kind != yaml.MappingNode {
		return nil, false
	}
	list := entry(document.Content[0], "nodes")
	if list == nil || list.Kind != yaml.SequenceNode || list.Style&yaml.FlowStyle != 0 {
		return nil, false
	}
	i := slices.IndexFunc(list.Content, func(n *yaml.Node) bool {
		v := entry(n, "name")
		return v != nil && v.Value == name
	})
	if i < 0 {
		return nil, false
	}
	lines := strings.SplitAfter(string(data), "\n")
	first := list.Content[i].Line - 1
	dash := indent(lines[first])
	if !strings.HasPrefix(strings.TrimLeft(lines[first], " "), "- ") {
		return nil, false // the dash stands on a line of its own
	}
	end, last := first+1, first+1
	for ; end < len(lines); end++ {
		switch text := strings.TrimSpace(lines[end]); {
		case text == "":
		case indent(lines[end]) <= dash:
			end = len(lines)
		default:
			last = end + 1 // comments within the node are its own
		}
	}
	return []byte(strings.Join(append(slices.Clone(lines[:first]), lines[last:]...), "")), true
}

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

// entry is the value of a key of a mapping; nil without one.
func entry(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
