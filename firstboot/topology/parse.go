package topology

import (
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

// maxFile bounds cluster.yaml; real ones have a few KiB.
const maxFile = 1 << 20

// Load reads and checks a file. Its error is of class Input and lists every
// mistake; what are warnings only stand in the Topology.
func Load(path string) (*Topology, error) {
	data, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, mistakes := Parse(path, data)
	return t, mistakes.Err()
}

// ReadFile reads a file as far as a topology may be long.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.Input, "reading the topology: %w", err).
			WithMend("name the cluster's file, or write one with slipway init")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fault.New(fault.Input, "reading the topology: %w", err)
	}
	return data, nil
}

// Parse reads and checks the text of a file, which messages call by the name
// given. The Topology is nil unless all mistakes are warnings.
func Parse(file string, data []byte) (*Topology, Mistakes) {
	r := &reader{file: file, lines: map[string]int{}}
	root, ok := r.document(data)
	if !ok {
		return nil, r.found
	}
	t := r.topology(value{reader: r, node: root})
	t.path = file
	c := &checker{reader: r, Topology: t}
	c.check()
	r.found.sort()
	if len(r.found.Errors()) > 0 {
		return nil, r.found
	}
	t.Warnings = r.found
	return t, r.found
}

// syntaxLine finds the line in what the YAML parser says.
var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): `)

// document parses the YAML and returns its top mapping.
func (r *reader) document(data []byte) (*yaml.Node, bool) {
	if len(data) > maxFile {
		r.wrong("", "describe one cluster a file", "the file is larger than %d bytes", maxFile)
		return nil, false
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var node yaml.Node
	err := decoder.Decode(&node)
	switch {
	case errors.Is(err, io.EOF):
		r.wrong("", "write a new one with slipway init", "the file is empty")
		return nil, false
	case err != nil:
		text := err.Error()
		if m := syntaxLine.FindStringSubmatch(text); m != nil {
			r.lines[""], _ = strconv.Atoi(m[1])
			text = text[len(m[0]):]
		}
		r.wrong("", "tabs cannot indent, and a text with \": \" in it needs quotes",
			"this is not YAML: %s", short(strings.TrimPrefix(text, "yaml: ")))
		return nil, false
	}
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		r.lines[""] = second.Line
		r.wrong("", "describe one cluster a file, without \"---\" in between", "there is a second document")
		return nil, false
	}
	if len(node.Content) != 1 || node.Content[0].Kind != yaml.MappingNode {
		r.wrong("", "write \"field: value\" lines, as docs/topology.md shows", "this is not a mapping of fields to values")
		return nil, false
	}
	r.lines[""] = node.Content[0].Line
	return node.Content[0], true
}
