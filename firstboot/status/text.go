package status

import (
	"fmt"
	"strings"
	"time"
)

// Style is how a text is drawn: with colours of ECMA-48, or without.
type Style bool

const (
	Plain  Style = false
	Colour Style = true
)

// Paint is a text in a colour, if the style has any; code is one of ECMA-48's, or "".
func (s Style) Paint(code, text string) string {
	if !s || code == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Screen is the report for a console of 25 lines: like Text, with what is done
// in one line.
func (r Report) Screen(now time.Time) string { return r.text(now, Colour, true) }

// Text is the report for people. It keeps to ASCII: the font of a virtual
// machine's console has no check marks.
func (r Report) Text(now time.Time, style Style) string { return r.text(now, style, false) }

func (r Report) text(now time.Time, style Style, brief bool) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	field := func(name, value string) {
		if value != "" {
			line("  %-12s %s", name, Clean(value))
		}
	}
	colour := map[State]string{Ready: "1;32", Degraded: "1;33", Maintenance: "1;33", Unconfigured: "1;33", Failed: "1;31"}[r.State]
	if colour == "" {
		colour = "1;36"
	}
	line("")
	line("  slipway %s - %s", Clean(r.Role), style.Paint(colour, strings.ToUpper(string(r.State))+" since "+Took(now.Sub(r.Since))))
	line("")
	tight := brief && r.Cluster != nil // a screen has room for one story
	if !tight {
		field("does", r.Summary)
	}
	version := r.Version
	if r.Trial {
		version += " (on trial: not confirmed yet)"
	}
	field("version", version)
	field("host name", r.Hostname)
	if m := r.Maintenance; m != nil {
		field("maintenance", fmt.Sprintf("since %s, by %s; to end it: slipway maintenance off", m.Since.UTC().Format("2006-01-02 15:04 UTC"), m.By))
	}
	if !tight {
		field("metadata", r.Datasource)
	}
	for i, a := range r.Addresses {
		name := "addresses"
		if i > 0 {
			name = " "
		}
		field(name, fmt.Sprintf("%s on %s", a.Address, a.Interface))
	}
	for i, k := range r.HostKeys {
		if tight && i > 0 {
			break
		}
		name := "host keys"
		if i > 0 {
			name = " "
		}
		field(name, k.Type+" "+k.Fingerprint)
	}
	if r.Cluster != nil {
		line("")
		for _, l := range r.Cluster.lines(style) {
			line("  %-12s %s", l[0], l[1])
		}
	}
	if !tight {
		line("")
	}
	var done, pending []string
	for _, s := range r.Steps {
		if brief && s.State == Done {
			done = append(done, s.Name)
			continue
		}
		if brief && s.State == Pending {
			pending = append(pending, s.Name)
			continue
		}
		mark := map[StepState]string{
			Pending: "[    ]", Running: style.Paint("1;36", "[ .. ]"),
			Done: style.Paint("32", "[ ok ]"), Broken: style.Paint("1;31", "[FAIL]"),
		}[s.State]
		detail := ""
		switch {
		case s.State == Running && s.WaitingFor != "":
			detail = fmt.Sprintf("for %s: %s", Took(now.Sub(s.Since)), s.WaitingFor)
		case s.State == Running:
			detail = "for " + Took(now.Sub(s.Since))
		case s.State == Broken:
			detail = s.Error
		case len(s.Changed) > 0:
			detail = strings.Join(s.Changed, ", ")
		}
		line("  %s %-15s %s", mark, s.Name, Clean(shorten(detail, 160)))
	}
	if tight && len(done) > 0 {
		done = []string{fmt.Sprintf("%d steps", len(done))}
	}
	if len(done) > 0 {
		line("  %s %s", style.Paint("32", "[ ok ]"), strings.Join(done, ", "))
	}
	if len(pending) > 0 {
		line("  [next] %s", strings.Join(pending, ", "))
	}
	if problems := r.News(); len(problems) > 0 {
		line("")
		for i, p := range problems {
			if brief && i == mostProblems {
				line("  ... and %d more: firstboot status", len(problems)-mostProblems)
				break
			}
			line("  %s %s", style.Paint("1;31", "!"), Clean(shorten(p, 400)))
		}
	}
	if len(r.Warnings) > 0 {
		most := 8
		if tight {
			most = 3
		}
		line("")
		for i, w := range r.Warnings {
			if i == most {
				line("  ... and %d more: firstboot status", len(r.Warnings)-most)
				break
			}
			line("  %s %s", style.Paint("1;33", "!"), Clean(shorten(w.String(), 220)))
		}
	}
	if len(r.Advice) > 0 {
		line("")
		for _, a := range r.Advice {
			line("  %s", Clean(a))
		}
	}
	return b.String()
}

// Clean keeps foreign text from steering the terminal, and to ASCII.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '…':
			return '.'
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, s)
}

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most-3] + "..."
}
