package apt

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits on control data from outside. Debian's largest paragraph is the
// Release file's, with a few megabytes; its longest line has some 60 kB.
const (
	maxLine      = 4 << 20
	maxParagraph = 64 << 20
)

// Paragraph is one block of "Name: value" fields (deb-control(5), "deb822").
type Paragraph struct {
	Line   int // where it starts, counted from 1
	fields []field
	size   int
}

type field struct {
	name  string // as written
	value []byte // lines joined by \n; the first one without its leading space
}

// Get returns a field's value; field names are case-insensitive. Continuation
// lines are joined by newlines and keep their leading space.
func (p *Paragraph) Get(name string) string {
	for i := range p.fields {
		if strings.EqualFold(p.fields[i].name, name) {
			return string(p.fields[i].value)
		}
	}
	return ""
}

// Lines returns the lines of a multi-line field, trimmed, without empty ones.
func (p *Paragraph) Lines(name string) []string {
	var lines []string
	for l := range strings.SplitSeq(p.Get(name), "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	return lines
}

// AppendText appends the paragraph as it was written, but for comments and blanks at the
// ends of lines, to b.
func (p *Paragraph) AppendText(b []byte) []byte {
	for i := range p.fields {
		f := &p.fields[i]
		b = append(append(b, f.name...), ':')
		if len(f.value) > 0 && f.value[0] != '\n' {
			b = append(b, ' ')
		}
		b = append(append(b, f.value...), '\n')
	}
	return b
}

// EachParagraph reads control data and calls each for every paragraph. The
// paragraph is only valid during the call. Comment lines (#) are skipped.
func EachParagraph(r io.Reader, each func(*Paragraph) error) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 64<<10), maxLine)
	var p Paragraph
	flush := func() error {
		if len(p.fields) == 0 {
			return nil
		}
		err := each(&p)
		p.fields, p.size = p.fields[:0], 0
		return err
	}
	n := 0
	for scanner.Scan() {
		n++
		line := bytes.TrimRight(scanner.Bytes(), " \t\r")
		switch {
		case len(line) == 0:
			if err := flush(); err != nil {
				return err
			}
			continue
		case line[0] == '#':
			continue
		}
		if p.size += len(line); p.size > maxParagraph {
			return fmt.Errorf("line %d: paragraph of more than %d bytes", n, maxParagraph)
		}
		if len(p.fields) == 0 {
			p.Line = n
		}
		if err := p.add(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := scanner.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("more than %d bytes", maxLine)
		}
		return fmt.Errorf("line %d: %w", n+1, err)
	}
	return flush()
}

// add takes one line of a paragraph, which must not keep the slice.
func (p *Paragraph) add(line []byte) error {
	if line[0] == ' ' || line[0] == '\t' {
		if len(p.fields) == 0 {
			return errors.New("a continuation line with no field before it")
		}
		last := &p.fields[len(p.fields)-1]
		last.value = append(append(last.value, '\n'), line...)
		return nil
	}
	name, value, found := bytes.Cut(line, []byte(":"))
	if !found || len(name) == 0 || bytes.ContainsAny(name, " \t") {
		return fmt.Errorf("%q: want \"Name: value\"", clip(line))
	}
	for i := range p.fields {
		if strings.EqualFold(p.fields[i].name, string(name)) {
			return fmt.Errorf("field %s stands twice in one paragraph", clip(name))
		}
	}
	// A recycled field keeps its buffer, and its name when that is the same:
	// an index has sixty thousand paragraphs of much the same fields.
	i := len(p.fields)
	if i < cap(p.fields) {
		p.fields = p.fields[:i+1]
	} else {
		p.fields = append(p.fields, field{})
	}
	f := &p.fields[i]
	if f.name != string(name) {
		f.name = string(name)
	}
	f.value = append(f.value[:0], bytes.TrimLeft(value, " \t")...)
	return nil
}

// clip shortens what goes into a message.
func clip(b []byte) string {
	const most = 60
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}
