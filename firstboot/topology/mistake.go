package topology

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Mistake is one thing that is wrong with a file, or that looks wrong.
type Mistake struct {
	File  string `json:"file"`
	Line  int    `json:"line"`  // from 1
	Field string `json:"field"` // as in nodes[2].nics[0].address; "" for the whole file
	Text  string `json:"text"`  // what is wrong
	Mend  string `json:"mend"`  // what to do about it
	// Warning marks what may be meant as it stands.
	Warning bool `json:"warning,omitempty"`
}

// String is the mistake on one line: where, what, and the mend.
func (m Mistake) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d: ", m.File, m.Line)
	if m.Warning {
		b.WriteString("warning: ")
	}
	if m.Field != "" {
		b.WriteString(m.Field + ": ")
	}
	b.WriteString(m.Text)
	if m.Mend != "" {
		b.WriteString("; " + m.Mend)
	}
	return b.String()
}

// Mistakes are those of a file, by line. As an error it has class Input.
type Mistakes []Mistake

// Error lists all mistakes, one a line.
func (m Mistakes) Error() string {
	lines := make([]string, len(m))
	for i, one := range m {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// Warnings are those that are warnings.
func (m Mistakes) Warnings() Mistakes { return m.pick(true) }

// Errors are those that are no warnings.
func (m Mistakes) Errors() Mistakes { return m.pick(false) }

func (m Mistakes) pick(warning bool) Mistakes {
	var out Mistakes
	for _, one := range m {
		if one.Warning == warning {
			out = append(out, one)
		}
	}
	return out
}

// Err is nil if there is nothing but warnings, else an error of class Input that
// lists everything else.
func (m Mistakes) Err() error {
	wrong := m.Errors()
	switch len(wrong) {
	case 0:
		return nil
	case 1:
		one := wrong[0]
		mend := one.Mend
		one.Mend = ""
		return fault.New(fault.Input, "%w", Mistakes{one}).WithMend("%s", mend)
	}
	return fault.New(fault.Input, "%s has %d mistakes:\n%w", wrong[0].File, len(wrong), wrong)
}

// sort orders mistakes as a reader of the file meets them.
func (m Mistakes) sort() {
	slices.SortStableFunc(m, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Text, b.Text))
	})
}
