package deb

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Field is one field of a control stanza. Value keeps continuation lines as
// they stand: each begins with a newline and a blank.
type Field struct{ Name, Value string }

// Stanza is a control stanza (deb822(5)) in its order.
type Stanza []Field

// ParseStanza reads the first stanza of text.
func ParseStanza(text []byte) (Stanza, error) {
	var s Stanza
	for number, raw := range bytes.Split(text, []byte("\n")) {
		line := strings.TrimRight(string(raw), " \t\r")
		switch {
		case line == "":
			if len(s) > 0 {
				return s, nil
			}
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if len(s) == 0 {
				return nil, fmt.Errorf("line %d continues a field, but none began", number+1)
			}
			s[len(s)-1].Value += "\n" + line
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok || strings.ContainsAny(name, " \t") || name == "" {
				return nil, fmt.Errorf("line %d is not \"Name: value\"", number+1)
			}
			s = append(s, Field{name, strings.TrimLeft(value, " \t")})
		}
	}
	if len(s) == 0 {
		return nil, errors.New("it holds no field")
	}
	return s, nil
}

// Get returns the value of the field, or "". Names are compared without case.
func (s Stanza) Get(name string) string {
	for _, f := range s {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// String writes the stanza as deb822, ended by a newline but no empty line.
func (s Stanza) String() string {
	var b strings.Builder
	for _, f := range s {
		b.WriteString(f.Name)
		b.WriteByte(':')
		if f.Value != "" && f.Value[0] != '\n' {
			b.WriteByte(' ')
		}
		b.WriteString(f.Value)
		b.WriteByte('\n')
	}
	return b.String()
}
