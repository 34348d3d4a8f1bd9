package netconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

// report gathers what a reader finds on its way through a document, so that
// the administrator sees every mistake at once.
type report struct {
	file     string
	warnings []Warning
	problems Mistakes
}

// maxProblems bounds the list in the error: after that many, the document is
// probably something else altogether.
const maxProblems = 20

func (r *report) fail(n *yaml.Node, format string, args ...any) {
	r.failAt(n.Line, format, args...)
}

func (r *report) failAt(line int, format string, args ...any) {
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, Warning{File: r.file, Line: line, Text: fmt.Sprintf(format, args...)})
	}
}

func (r *report) warn(line int, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{File: r.file, Line: line, Text: fmt.Sprintf(format, args...)})
}

func (r *report) err() error {
	if len(r.problems) == 0 {
		return nil
	}
	return fault.New(fault.Input, "%w", r.problems).
		WithMend("Correct the network configuration in the seed and start the node again.")
}

// value is one place in a document.
type value struct {
	*report
	node *yaml.Node
	name string // the key it stands at, for messages
}

type entry struct {
	key  string
	line int
	value
}

// load parses YAML (and JSON, which is YAML) into its root value.
func load(r *report, data []byte) (value, bool) {
	if len(data) > MaxSize {
		r.failAt(1, "the file has %d bytes, more than the limit of %d", len(data), MaxSize)
		return value{}, false
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return value{}, false
	case err != nil:
		line, text := yamlProblem(err)
		r.failAt(line, "not valid YAML: %s", text)
		return value{}, false
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		return value{}, false
	}
	return value{report: r, node: resolve(doc.Content[0]), name: "document"}, true
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// yamlProblem takes the line out of the YAML library's message.
func yamlProblem(err error) (line int, text string) {
	text = err.Error()
	line = 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.TrimPrefix(text, m[0])
	}
	return line, strings.TrimPrefix(text, "yaml: ")
}

func resolve(n *yaml.Node) *yaml.Node {
	// An alias to an alias does not occur; the bound is against documents made to loop.
	for i := 0; n.Kind == yaml.AliasNode && n.Alias != nil && i < 8; i++ {
		n = n.Alias
	}
	return n
}

func (v value) null() bool { return v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!null" }

func (v value) entries() []entry {
	if v.null() {
		return nil
	}
	if v.node.Kind != yaml.MappingNode {
		v.fail(v.node, "%s must hold keys and values", v.name)
		return nil
	}
	var out []entry
	seen := map[string]int{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k, val := v.node.Content[i], resolve(v.node.Content[i+1])
		if k.Kind != yaml.ScalarNode {
			v.fail(k, "%s: a key must be a plain word", v.name)
			continue
		}
		if first, dup := seen[k.Value]; dup {
			v.fail(k, "%s: key %q is given twice, first in line %d", v.name, k.Value, first)
			continue
		}
		seen[k.Value] = k.Line
		out = append(out, entry{k.Value, k.Line, value{v.report, val, k.Value}})
	}
	return out
}

// get returns the value at key, if there.
func (v value) get(key string) (value, bool) {
	if v.node.Kind != yaml.MappingNode {
		return value{}, false
	}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		if v.node.Content[i].Value == key {
			return value{v.report, resolve(v.node.Content[i+1]), key}, true
		}
	}
	return value{}, false
}

// items returns the elements of a list; a single scalar counts as a list of one.
func (v value) items() []value {
	switch {
	case v.null():
		return nil
	case v.node.Kind == yaml.ScalarNode:
		return []value{v}
	case v.node.Kind != yaml.SequenceNode:
		v.fail(v.node, "%s must be a list", v.name)
		return nil
	}
	var out []value
	for _, n := range v.node.Content {
		out = append(out, value{v.report, resolve(n), v.name})
	}
	return out
}

func (v value) str() string {
	if v.node.Kind != yaml.ScalarNode {
		v.fail(v.node, "%s must be a single value", v.name)
		return ""
	}
	if v.null() {
		return ""
	}
	// Every string ends in a line of an ini file; a line break or a control
	// character in it would write another line there.
	for _, c := range v.node.Value {
		if c < ' ' || c == 0x7f {
			v.fail(v.node, "%s holds a control character", v.name)
			return ""
		}
	}
	return strings.TrimSpace(v.node.Value)
}

func (v value) strings() []string {
	var out []string
	for _, item := range v.items() {
		if s := item.str(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// words is strings for lists that may also be one string with blanks or commas.
func (v value) words() []string {
	var out []string
	for _, s := range v.strings() {
		out = append(out, strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' })...)
	}
	return out
}

func (v value) boolean() bool {
	switch strings.ToLower(v.str()) {
	case "true", "yes", "on", "1":
		return true
	case "false", "no", "off", "0", "":
		return false
	}
	v.fail(v.node, "%s must be true or false, not %q", v.name, v.node.Value)
	return false
}

func (v value) booleanPtr() *bool {
	if v.null() {
		return nil
	}
	b := v.boolean()
	return &b
}

func (v value) integer(lo, hi int) int {
	s := v.str()
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		v.fail(v.node, "%s must be a number, not %q", v.name, s)
		return lo
	}
	if n < int64(lo) || n > int64(hi) {
		v.fail(v.node, "%s must be between %d and %d, not %d", v.name, lo, hi, n)
		return lo
	}
	return int(n)
}

// one returns the string if it is among the allowed words.
func (v value) one(allowed ...string) string {
	s := strings.ToLower(v.str())
	for _, a := range allowed {
		if s == a {
			return a
		}
	}
	v.fail(v.node, "%s must be one of %s, not %q", v.name, strings.Join(allowed, ", "), s)
	return ""
}

func (v value) mac() string {
	s := v.str()
	if s == "" {
		return ""
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		v.fail(v.node, "%s: %q is not a MAC address such as 52:54:00:12:34:56", v.name, s)
		return ""
	}
	return hw.String()
}

func (v value) addr() netip.Addr {
	a, err := netip.ParseAddr(v.str())
	if err != nil || a.Zone() != "" {
		v.fail(v.node, "%s: %q is not an IP address", v.name, v.node.Value)
		return netip.Addr{}
	}
	return a.Unmap()
}

func (v value) addrs() []netip.Addr {
	var out []netip.Addr
	for _, item := range v.items() {
		for _, w := range item.words() {
			a, err := netip.ParseAddr(w)
			if err != nil || a.Zone() != "" {
				v.fail(item.node, "%s: %q is not an IP address", v.name, w)
				continue
			}
			out = append(out, a.Unmap())
		}
	}
	return out
}

// prefix reads ADDRESS/LENGTH. Without a length, a whole address is meant if
// host is set; else that is a mistake.
func (v value) prefix(host bool) netip.Prefix {
	s := v.str()
	p, err := netip.ParsePrefix(s)
	if err == nil {
		return p
	}
	if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
		if host {
			return netip.PrefixFrom(a, a.BitLen())
		}
		v.fail(v.node, "%s: %q lacks the length of its network: write for example %s/24", v.name, s, s)
		return netip.Prefix{}
	}
	v.fail(v.node, "%s: %q is not an address with the length of its network, such as 192.0.2.10/24", v.name, s)
	return netip.Prefix{}
}

// netmaskLength turns 255.255.255.0, or 24, or ffff:ffff:: into a prefix length for an address.
func netmaskLength(s string, a netip.Addr) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > a.BitLen() {
			return 0, fmt.Errorf("%d is not the length of a network of %s", n, a)
		}
		return n, nil
	}
	m, err := netip.ParseAddr(s)
	if err != nil || m.Is4() != a.Is4() {
		return 0, fmt.Errorf("%q is not a netmask for %s", s, a)
	}
	ones, bits := net.IPMask(m.AsSlice()).Size()
	if bits == 0 {
		return 0, fmt.Errorf("%q is not a netmask: its ones are not in one row", s)
	}
	return ones, nil
}

// netmask reads the value as a mask for a and returns the network of a.
func (v value) netmask(a netip.Addr) netip.Prefix {
	n, err := netmaskLength(v.str(), a)
	if err != nil {
		v.fail(v.node, "%s: %v", v.name, err)
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, n)
}

var ifname = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,14}$`)

// interfaceName reads a name that the kernel and a file name both can bear.
func (v value) interfaceName() string {
	s := v.str()
	if s != "" && !ifname.MatchString(s) {
		v.fail(v.node, "%s: %q cannot name an interface: at most 15 letters, digits, dots, hyphens and underscores", v.name, s)
		return ""
	}
	return s
}

func isGlob(s string) bool { return strings.ContainsAny(s, "*?[") }
