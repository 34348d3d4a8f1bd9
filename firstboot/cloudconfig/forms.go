package cloudconfig

import (
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Words is a list that may also be written as one comma-separated text.
type Words []string

func (w *Words) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*w = nil
	switch n.Kind {
	case yaml.ScalarNode:
		s, ok := d.text(n, path)
		if !ok {
			return
		}
		for _, word := range strings.Split(s, ",") {
			if word = strings.TrimSpace(word); word != "" {
				*w = append(*w, word)
			}
		}
	case yaml.SequenceNode:
		*w = d.texts(n, path)
	default:
		d.report(Invalid, n, path, "must be a list of texts, but is %s", describe(n))
	}
}

// Lines is a list that may also be written as one text, which is one item.
type Lines []string

func (l *Lines) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*l = nil
	if n.Kind == yaml.SequenceNode {
		*l = d.texts(n, path)
	} else if s, ok := d.text(n, path); ok {
		*l = Lines{s}
	}
}

func (d *decoder) texts(n *yaml.Node, path string) []string {
	var out []string
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		item, ok := d.resolve(item, at)
		if !ok {
			continue
		}
		if s, ok := d.text(item, at); ok {
			out = append(out, s)
		}
	}
	return out
}

// Command is one entry of runcmd or bootcmd: a line for the shell, or a
// program with its arguments, which no shell sees.
type Command struct {
	Shell string   `json:"shell,omitempty"`
	Argv  []string `json:"argv,omitempty"`
}

func (c *Command) decodeCloud(d *decoder, n *yaml.Node, path string) {
	switch n.Kind {
	case yaml.ScalarNode:
		c.Shell, _ = d.text(n, path)
	case yaml.SequenceNode:
		c.Argv = d.texts(n, path)
		if len(c.Argv) == 0 {
			d.report(Invalid, n, path, "an empty command")
		}
	default:
		d.report(Invalid, n, path, "a command must be text or a list of texts, but is %s", describe(n))
	}
}

// Script is the command as a line of a shell script.
func (c Command) Script() string {
	if c.Argv == nil {
		return c.Shell
	}
	quoted := make([]string, len(c.Argv))
	for i, arg := range c.Argv {
		quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

// Mode is a file's permission bits, written in octal.
type Mode uint32

func (m *Mode) decodeCloud(d *decoder, n *yaml.Node, path string) {
	digits := strings.TrimPrefix(n.Value, "0o")
	value, err := strconv.ParseUint(digits, 8, 32)
	// YAML reads an unquoted 644 as a decimal number and cloud-init takes it at
	// its word; nobody who writes it wants 01204.
	ambiguous := n.ShortTag() == "!!int" && !strings.HasPrefix(n.Value, "0")
	if n.Kind != yaml.ScalarNode || err != nil || value > 0o7777 || ambiguous {
		d.report(Invalid, n, path, "must be octal permission bits in quotes, such as '0644'")
		return
	}
	*m = Mode(value)
}

// Group is one entry of groups: a name, or a name with its members.
type Group struct {
	Name    string
	Members []string
}

// Groups may be written as text with commas, as a list of names and of
// mappings from name to members, or as one such mapping.
type Groups []Group

func (g *Groups) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*g = nil
	switch n.Kind {
	case yaml.ScalarNode:
		var words Words
		words.decodeCloud(d, n, path)
		for _, name := range words {
			*g = append(*g, Group{Name: name})
		}
	case yaml.MappingNode:
		d.mapping(n, path, func(name string, _, members *yaml.Node) {
			members, ok := d.resolve(members, path)
			if !ok {
				return
			}
			group := Group{Name: name}
			if !isNull(members) {
				var words Words
				words.decodeCloud(d, members, join(path, name))
				group.Members = words
			}
			*g = append(*g, group)
		})
	case yaml.SequenceNode:
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			item, ok := d.resolve(item, at)
			if !ok {
				continue
			}
			if item.Kind == yaml.SequenceNode {
				d.report(Invalid, item, at, "must be a group's name, or a name with its members, but is a list")
				continue
			}
			var some Groups
			some.decodeCloud(d, item, at)
			*g = append(*g, some...)
		}
	}
}

// Tri is a switch with a third position that leaves things as they are.
type Tri struct {
	Set   bool
	Value bool
}

func (t *Tri) decodeCloud(d *decoder, n *yaml.Node, path string) {
	if n.Kind == yaml.ScalarNode && (n.Value == "unchanged" || n.Value == "") {
		return
	}
	if b, ok := d.boolean(n, path); ok {
		*t = Tri{Set: true, Value: b}
	}
}

// Switch is a value that is a word, true or false; some keys take a list too,
// which is kept as Words.
type Switch struct {
	Given bool
	Text  string
	Words []string
}

func (s *Switch) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*s = Switch{Given: true}
	if n.Kind == yaml.SequenceNode {
		s.Words = d.texts(n, path)
	} else {
		s.Text, _ = d.text(n, path)
	}
}

// Off reports whether the value says no.
func (s Switch) Off() bool {
	switch strings.ToLower(s.Text) {
	case "false", "no", "off":
		return s.Given
	}
	return false
}

// Fields is a row of texts in which null leaves the default.
type Fields []*string

func (f *Fields) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*f = nil
	if n.Kind != yaml.SequenceNode {
		d.report(Invalid, n, path, "must be a list, but is %s", describe(n))
		return
	}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		item, ok := d.resolve(item, at)
		if !ok {
			return
		}
		if isNull(item) {
			*f = append(*f, nil)
		} else if s, ok := d.text(item, at); ok {
			*f = append(*f, &s)
		}
	}
}

// Layout is how a disk is divided: not at all, as one partition, or by shares.
type Layout struct {
	Whole  bool // one partition over the whole disk
	Remove bool // take every partition away
	Parts  []Part
}

// Part is one partition: its share of the disk in per cent, and its type.
type Part struct {
	Percent int
	Type    string
}

func (l *Layout) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*l = Layout{}
	if n.Kind == yaml.ScalarNode && n.Value == "remove" {
		l.Remove = true
		return
	}
	if n.Kind != yaml.SequenceNode {
		l.Whole, _ = d.boolean(n, path)
		return
	}
	total := 0
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		item, ok := d.resolve(item, at)
		if !ok {
			return
		}
		part, share := Part{}, item
		if item.Kind == yaml.SequenceNode {
			if len(item.Content) != 2 {
				d.report(Invalid, item, at, "a partition is a share in per cent, or [share, type]")
				continue
			}
			if share, ok = d.resolve(item.Content[0], at); !ok {
				return
			}
			if kind, ok := d.resolve(item.Content[1], at); ok {
				part.Type, _ = d.text(kind, at)
			}
		}
		percent, ok := d.integer(share, at)
		if !ok {
			continue
		}
		if percent < 1 || percent > 100 {
			d.report(Invalid, share, at, "a share must be between 1 and 100 per cent")
			continue
		}
		part.Percent = int(percent)
		total += part.Percent
		l.Parts = append(l.Parts, part)
	}
	if total > 100 {
		d.report(Invalid, n, path, "the shares add up to %d per cent", total)
		l.Parts = nil
	}
}

// PasswordList is the old form of chpasswd.users: lines of name:password,
// where the password is a hash if it looks like one and R or RANDOM asks for
// one made up.
type PasswordList []Password

func (l *PasswordList) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*l = nil
	var lines Lines
	lines.decodeCloud(d, n, path)
	for _, line := range strings.Split(strings.Join(lines, "\n"), "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, password, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			d.report(Invalid, n, path, "every line must be name:password")
			continue
		}
		kind := "text"
		switch {
		case password == "R" || password == "RANDOM":
			kind = "RANDOM"
		case strings.HasPrefix(password, "$") && strings.Count(password, "$") >= 3:
			kind = "hash"
		}
		*l = append(*l, Password{Name: name, Password: password, Type: kind})
	}
}
